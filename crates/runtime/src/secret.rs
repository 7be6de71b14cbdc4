//! Memory for keys: never paged out, in no core dump, not in children, wiped when it goes.
//!
//! INVARIANT: every [`Pages`] is a private anonymous mapping of its own, so that what the kernel is told of it (by whole
//! pages) concerns nothing else.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Some secret bytes; zeroed at first, and again before their memory is given back.
pub struct SecretBytes {
    pages: Pages,
    len: usize,
}

impl SecretBytes {
    /// `len` zeroes.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let pages = Pages::new(len)?;
        Ok(Self { pages, len })
    }

    /// Overwrites all with zeroes.
    pub fn wipe(&mut self) {
        self.pages.wipe();
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping holds at least `len` initialised bytes (zeroes at first) and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.pages.start.as_ptr(), self.len) }
    }
}

impl DerefMut for SecretBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.start.as_ptr(), self.len) }
    }
}

/// A value with secrets in itself (not behind pointers), such as an expanded key.
pub struct SecretBox<T> {
    pages: Pages,
    value: NonNull<T>,
}

impl<T> SecretBox<T> {
    /// Puts what `make` returns into memory of its own. What `make` leaves on the stack on the way is overwritten.
    pub fn new(make: impl FnOnce() -> T) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= PAGE_ALIGN_MIN) }
        let pages = Pages::new(size_of::<T>())?;
        let value: NonNull<T> = pages.start.cast();
        place(value, make);
        scrub_stack::<SCRUBBED_STACK_BYTES>();
        Ok(Self { pages, value })
    }
}

impl<T> SecretBox<Option<T>> {
    /// `None` when there is nothing in it.
    pub fn transpose(self) -> Option<SecretSome<T>> {
        self.is_some().then_some(SecretSome(self))
    }
}

/// A [`SecretBox`] whose making may have failed and has not.
pub struct SecretSome<T>(SecretBox<Option<T>>);

impl<T> Deref for SecretSome<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("made by transpose, which looked")
    }
}

/// In a frame of its own, which [`scrub_stack`] then covers.
#[inline(never)]
fn place<T>(value: NonNull<T>, make: impl FnOnce() -> T) {
    // SAFETY: the caller made the mapping large enough for a T and aligned (pages are), and nothing lives in it yet.
    unsafe { value.as_ptr().write(make()) }
}

/// Overwrites the `BYTES` of the stack below the caller's frame, which the calls that it has made before have used. Those must
/// not have been inlined.
#[inline(never)]
pub fn scrub_stack<const BYTES: usize>() {
    let mut used = [0u8; BYTES];
    // Seen from outside, so that the stores are not left out.
    std::hint::black_box(&mut used);
}

impl<T> Deref for SecretBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a T was written there by `new`, and only drop takes it away.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for SecretBox<T> {
    fn drop(&mut self) {
        // SAFETY: the T that `new` wrote; nobody can see it after this.
        unsafe { self.value.as_ptr().drop_in_place() }
        self.pages.wipe();
    }
}

// SAFETY: a SecretBox owns its T like a Box; the mapping belongs to the process, not to a thread.
unsafe impl<T: Send> Send for SecretBox<T> {}
// SAFETY: `&SecretBox` only gives `&T`.
unsafe impl<T: Sync> Sync for SecretBox<T> {}

struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES_MAX);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let start = match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => start,
            _ => return Err(io::Error::last_os_error()),
        };
        let pages = Self { start, bytes };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
            // SAFETY: the range is the mapping just made; the advice changes no content in this process.
            if unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the range is the mapping just made.
        if unsafe { libc::mlock(start.as_ptr().cast(), bytes) } != 0 {
            let error = io::Error::last_os_error();
            tracing::warn!(%error, "a key's memory may be paged out: it cannot be locked (see ulimit -l)");
        }
        Ok(pages)
    }

    fn wipe(&mut self) {
        for at in 0..self.bytes / 8 {
            // SAFETY: inside the mapping, which is writable and aligned; exclusive by `&mut self`.
            unsafe { self.start.cast::<u64>().add(at).write_volatile(0) }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the mapping that `new` made; its only owner is going.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: Pages owns its mapping, which belongs to the process and not to a thread.
unsafe impl Send for Pages {}
// SAFETY: no method of `&Pages` touches the bytes.
unsafe impl Sync for Pages {}

/// Large enough for every machine's pages.
const PAGE_BYTES_MAX: usize = 4096;
const PAGE_ALIGN_MIN: usize = 4096;
const SCRUBBED_STACK_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags that the kernel has for the mapping around `address`.
    fn flags_at(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) = (
                    usize::from_str_radix(start, 16),
                    usize::from_str_radix(end, 16),
                )
            {
                inside = (start..end).contains(&address);
            }
            if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return format!("{flags} ");
            }
        }
        panic!("no mapping at {address:x}");
    }

    #[test]
    fn secrets_are_in_no_dump_and_in_no_child() {
        let mut bytes = SecretBytes::zeroed(64).expect("memory");
        bytes[63] = 7;
        let flags = flags_at(bytes.as_ptr() as usize);
        assert!(flags.contains(" dd ") && flags.contains(" wf "), "{flags}");
        bytes.wipe();
        assert_eq!(&*bytes, &[0; 64]);
    }

    #[test]
    fn a_value_is_dropped_with_its_box() {
        let counted = std::sync::Arc::new(());
        let boxed = SecretBox::new(|| (counted.clone(), [5u8; 100])).expect("memory");
        assert_eq!(boxed.1[99], 5);
        assert_eq!(std::sync::Arc::strong_count(&counted), 2);
        drop(boxed);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }
}
