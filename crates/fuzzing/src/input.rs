//! Bytes as a sequence of choices. Past the end every choice is zero, so each input means something.

/// What is left of an input.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to `len` bytes, fewer at the end.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of `count` (above zero) by a byte, or by two where a byte does not reach.
    pub fn below(&mut self, count: usize) -> usize {
        if count <= 256 {
            usize::from(self.u8()) % count
        } else {
            usize::from(self.u16()) % count
        }
    }

    /// Yes or no, by a byte.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// Text of up to `len` bytes, by a byte what is less.
    pub fn text(&mut self, len: usize) -> String {
        let len = usize::from(self.u8()).min(len);
        String::from_utf8_lossy(self.bytes(len)).into_owned()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
