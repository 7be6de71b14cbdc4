//! What a client has sent and nobody has looked at yet.

/// Bytes received and not yet looked at.
pub struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    /// With what came behind the handshake.
    pub fn new(first: &[u8]) -> Self {
        let mut bytes = vec![0; INPUT_BYTES.max(first.len())];
        bytes[..first.len()].copy_from_slice(first);
        Self {
            bytes: bytes.into_boxed_slice(),
            start: 0,
            end: first.len(),
        }
    }

    /// Room for more. What is left of a request moves to the front first; it is shorter than a header.
    pub fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.bytes[self.end..]
    }

    /// So many bytes were put into [`Self::space`].
    pub fn grew(&mut self, count: usize) {
        self.end += count;
    }

    /// The next bytes, if so many are there.
    pub fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes[self.start..self.end].first_chunk()
    }

    /// The next bytes, at most so many, which are used up.
    pub fn take_up_to(&mut self, count: usize) -> &[u8] {
        let from = self.start;
        self.start = (from + count).min(self.end);
        &self.bytes[from..self.start]
    }
}

/// One receive takes up to some hundred requests, or the payload of many small writes.
const INPUT_BYTES: usize = 128 << 10;
