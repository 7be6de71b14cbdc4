//! A mapping's key: as it is told in table lines, and expanded for requests.
//!
//! INVARIANT: while [`KeyState::is_valid`], `engine` holds the cipher under the key. A failed change leaves the old
//! engine, but no valid key: the device then cannot be resumed, as in the kernel.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use thinmap_runtime::{SecretBox, SecretBytes, SecretSome};

use super::cipher::CipherSpec;
use super::engine::{Engine, SectorSize};
use super::kept::{Kept, Left};
use super::key::{KEPT, KeyWord};

/// Why a key was refused.
#[derive(Debug)]
pub(super) struct BadKey {
    pub(super) reason: String,
    pub(super) errno: i32,
}

impl BadKey {
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            errno: EINVAL,
        }
    }
}

pub(super) struct KeyState {
    /// Zeroes when the kernel keeps the key, and after a wipe.
    told: SecretBytes,
    /// The name of the kernel's key.
    name: Option<String>,
    valid: bool,
    engine: Arc<ArcSwapOption<SecretSome<Engine>>>,
    /// For the next process, where something keeps secrets.
    kept: Option<Kept>,
}

impl KeyState {
    /// No key yet, but room for one of `size` bytes. Requests take the cipher from `engine`.
    pub(super) fn new(
        size: usize,
        engine: Arc<ArcSwapOption<SecretSome<Engine>>>,
        kept: Option<Kept>,
    ) -> Result<Self, BadKey> {
        Ok(Self {
            told: SecretBytes::zeroed(size).map_err(no_memory)?,
            name: None,
            valid: false,
            engine,
            kept,
        })
    }

    /// The key as the last process had it, which may be none. No request may be under way.
    pub(super) fn restore(
        &mut self,
        left: Left,
        spec: &CipherSpec,
        sectors: SectorSize,
    ) -> Result<(), BadKey> {
        self.name = left.name;
        let Some(key) = left.key else {
            return Ok(());
        };
        self.expand(&key, spec, sectors)?;
        thinmap_runtime::scrub_stack::<SCRUBBED_STACK_BYTES>();
        if self.name.is_none() {
            self.told.copy_from_slice(&key);
        }
        self.valid = true;
        Ok(())
    }

    /// The mapping is live.
    pub(super) fn used(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.used();
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        self.valid
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        self.told.len()
    }

    /// Takes a key of the size that there is room for. No request may be under way.
    pub(super) fn set(
        &mut self,
        word: &KeyWord<'_>,
        spec: &CipherSpec,
        sectors: SectorSize,
    ) -> Result<(), BadKey> {
        let set = self.try_set(word, spec, sectors);
        thinmap_runtime::scrub_stack::<SCRUBBED_STACK_BYTES>();
        set
    }

    #[inline(never)]
    fn try_set(
        &mut self,
        word: &KeyWord<'_>,
        spec: &CipherSpec,
        sectors: SectorSize,
    ) -> Result<(), BadKey> {
        if word.is_kernels() {
            // COMPAT: a kernel's key that is not there leaves the old one in place.
            let mut key = SecretBytes::zeroed(self.told.len()).map_err(no_memory)?;
            let name = word.fill(&mut key)?;
            self.invalidate();
            self.expand(&key, spec, sectors)?;
            self.told.wipe();
            self.name = name;
            self.keep(&key);
        } else {
            self.invalidate();
            self.name = None;
            word.fill(&mut self.told)?;
            self.expand(&self.told, spec, sectors)?;
            self.keep(&self.told);
        }
        self.valid = true;
        Ok(())
    }

    fn invalidate(&mut self) {
        self.valid = false;
        if let Some(kept) = &self.kept {
            kept.wipe();
        }
    }

    fn keep(&self, key: &[u8]) {
        if let Some(kept) = &self.kept {
            kept.put(key, self.name.as_deref());
        }
    }

    fn expand(&self, key: &[u8], spec: &CipherSpec, sectors: SectorSize) -> Result<(), BadKey> {
        let boxed = SecretBox::new(|| Engine::new(spec, sectors, key)).map_err(no_memory)?;
        let boxed = boxed.transpose().ok_or_else(|| {
            let bits = key.len() * 8;
            BadKey::invalid(format!("{} has no keys of {bits} bits", spec.text))
        })?;
        self.engine.store(Some(Arc::new(boxed)));
        Ok(())
    }

    /// Forgets the key. No request may be under way.
    pub(super) fn wipe(&mut self) {
        self.invalidate();
        self.name = None;
        self.told.wipe();
        self.engine.store(None);
    }

    /// Bytes that [`KeyState::tell`] appends at most.
    pub(super) fn told_len(&self) -> usize {
        let name = self.name.as_ref().map_or(0, String::len);
        2 * self.told.len() + name + NUMBER_BYTES
    }

    /// Appends what leads the next process to the key.
    pub(super) fn tell_kept(&self, out: &mut String) {
        let id = self.kept.as_ref().map_or("none", Kept::id);
        out.push_str(&format!(":{}:{KEPT}{id}", self.told.len()));
    }

    /// Appends the key as a table line has it.
    pub(super) fn tell(&self, out: &mut String) {
        if let Some(name) = &self.name {
            out.push_str(&format!(":{}:{name}", self.told.len()));
            return;
        }
        for byte in self.told.iter() {
            for digit in [byte >> 4, byte & 15] {
                out.extend(char::from_digit(u32::from(digit), 16));
            }
        }
    }
}

fn no_memory(error: std::io::Error) -> BadKey {
    BadKey {
        reason: format!("no memory for the key: {error}"),
        errno: ENOMEM,
    }
}

/// Of a number and the colons around it.
const NUMBER_BYTES: usize = 32;
/// More than an expansion of a key uses.
const SCRUBBED_STACK_BYTES: usize = 32 << 10;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
