//! The functions that the program would have called: those of the next library in the search order.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A libc function, looked up at its first use.
pub struct Next {
    /// With its NUL.
    name: &'static str,
    address: AtomicUsize,
}

impl Next {
    /// The function of this name, which ends in NUL.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            address: AtomicUsize::new(0),
        }
    }

    /// Its address; 0 when no library has it (older and newer libcs differ in what they offer).
    pub fn address(&self) -> usize {
        match self.address.load(Ordering::Relaxed) {
            0 => self.look_up(),
            known => known,
        }
    }

    #[cold]
    fn look_up(&self) -> usize {
        // SAFETY: the name is NUL-terminated; dlsym has no other demands.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr().cast()) } as usize;
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// Defines libc functions for the program: `handler(next, arguments…)` answers, where `next()` calls the function that it
/// stands before.
macro_rules! stand_before {
    ($($($name:ident),+ => $handler:ident($($arg:ident: $kind:ty),+) -> $result:ty;)+) => {
        $($crate::next::stand_before!(@each [$($name)+] $handler [$($arg: $kind),+] $result);)+
    };
    (@each [$($name:ident)+] $handler:ident $args:tt $result:ty) => {
        $($crate::next::stand_before!(@one $name $handler $args $result);)+
    };
    (@one $name:ident $handler:ident [$($arg:ident: $kind:ty),+] $result:ty) => {
        /// The libc function of this name.
        ///
        /// # Safety
        /// As that function asks. The last word of a variadic one is passed on whether or not it was given: it travels
        /// in a register, and is looked at only when the words before it say that it is there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $kind),+) -> $result {
            const NAME: &str = concat!(stringify!($name), "\0");
            static NEXT: $crate::next::Next = $crate::next::Next::new(NAME);
            let next = || match NEXT.address() {
                0 => $crate::answer::fail(rustix::io::Errno::NOSYS),
                address => {
                    type Function = unsafe extern "C" fn($($kind),+) -> $result;
                    // SAFETY: libc's function of this name has this signature, and these are its caller's arguments.
                    unsafe { std::mem::transmute::<usize, Function>(address)($($arg),+) }
                }
            };
            // SAFETY: the caller keeps the promises that the libc function asks for.
            unsafe { $handler(next, $($arg),+) }
        }
    };
}
pub(crate) use stand_before;
