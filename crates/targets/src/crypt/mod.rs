//! `crypt`: a line whose sectors are encrypted on the device below.
//!
//! Arguments: `<cipher> <key> <iv offset> <device> <first sector> [<count> <feature>...]`. No status. Messages: `key set
//! <key>`, `key wipe`, on a suspended device.
//!
//! INVARIANT: the key and what is derived from it lie in [`thinmap_runtime::SecretBytes`] and
//! [`thinmap_runtime::SecretBox`]es only, once the table line's words have been wiped by whoever brought them.

mod aes;
mod cbc;
mod cipher;
mod data;
mod engine;
mod features;
mod kept;
mod key;
mod key_state;
#[cfg(test)]
mod tests;
mod xts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use thinmap_block::{Io, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, KeptMemory, MapOutcome, MessageError, ResumeError,
    StatusFlags, StatusKind, TableError, Target, TargetArgs, TargetFeatures, TargetInfo,
    TargetType,
};
use thinmap_runtime::SecretSome;
use thinmap_units::Sector;

pub(crate) use self::aes::{Aes, BLOCK_BYTES};
use self::cipher::CipherSpec;
use self::data::{Buffers, Data};
use self::engine::{Engine, SectorSize};
use self::features::Features;
use self::kept::Kept;
use self::key::KeyWord;
use self::key_state::{BadKey, KeyState};
use crate::args::{measured, open_device, parse_u64};
use crate::workers::Workers;

/// The target type.
pub struct CryptType;

impl TargetType for CryptType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: VERSION,
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let wrong = |reason: String| TableError::invalid(NAME, reason);
        let [cipher, key, iv_offset, device, start, features @ ..] = args.argv else {
            return Err(wrong("Not enough arguments".to_owned()));
        };
        let word = KeyWord::parse(key).ok_or_else(|| wrong("Cannot parse key size".to_owned()))?;
        let features = Features::parse(features, args.len)?;
        let spec = CipherSpec::parse(cipher)?;
        let engine = Arc::new(ArcSwapOption::empty());
        let key =
            key_state(&word, engine.clone(), (&spec, features.sectors), cx).map_err(|bad| {
                let reason = format!("Error decoding and setting key: {}", bad.reason);
                TableError::new(NAME, reason, bad.errno)
            })?;
        let was_wiped = !key.is_valid();
        let iv_offset = parse_u64(iv_offset)
            .filter(|offset| offset.is_multiple_of(features.sectors.sectors()))
            .ok_or_else(|| wrong(format!("Invalid iv_offset sector '{iv_offset}'")))?;
        let device = open_device(cx, NAME, device, false, "Device lookup failed")?;
        let start = parse_u64(start)
            .map(Sector)
            .ok_or_else(|| wrong(format!("Invalid device sector '{start}'")))?;
        let data = Data {
            begin: args.begin,
            start,
            iv_offset,
            device,
            features,
            engine,
            workers: Workers::of(cx.env),
            buffers: cx.env.shared.of::<Buffers>(),
        };
        Ok(Arc::new(Crypt {
            len: args.len,
            spec,
            key: Mutex::new(key),
            suspended: AtomicBool::new(false),
            was_wiped: AtomicBool::new(was_wiped),
            data: Arc::new(data),
        }))
    }
}

/// The key that the word tells, or that the last process had.
fn key_state(
    word: &KeyWord<'_>,
    engine: Arc<ArcSwapOption<SecretSome<Engine>>>,
    (spec, sectors): (&CipherSpec, SectorSize),
    cx: &ConstructCx<'_>,
) -> Result<KeyState, BadKey> {
    let keeper = cx.env.shared.of::<KeptMemory>().keeper();
    if let (Some(id), Some(keeper)) = (word.kept(), keeper.clone()) {
        let left = Kept::take(keeper, id, word.size).map_err(|error| BadKey {
            reason: format!("the last daemon's key: {error}"),
            errno: error.raw_os_error().unwrap_or(EINVAL),
        })?;
        let (kept, left) =
            left.ok_or_else(|| BadKey::invalid("the key went with the last daemon"))?;
        let mut key = KeyState::new(word.size, engine, Some(kept))?;
        key.restore(left, spec, sectors)?;
        return Ok(key);
    }
    let kept = keeper.and_then(|keeper| {
        let kept = Kept::new(keeper, word.size);
        kept.inspect_err(|error| {
            tracing::warn!(%error, "crypt: the key cannot be kept for a next daemon: if this one dies, the table must be loaded again");
        })
        .ok()
    });
    let mut key = KeyState::new(word.size, engine, kept)?;
    key.set(word, spec, sectors)?;
    Ok(key)
}

struct Crypt {
    len: Sector,
    spec: CipherSpec,
    key: Mutex<KeyState>,
    suspended: AtomicBool,
    /// The last process's key was wiped, when this line took over: it must become live to be suspended as it was.
    was_wiped: AtomicBool,
    data: Arc<Data>,
}

impl Crypt {
    fn set_key(&self, word: &str) -> Result<(), MessageError> {
        let mut key = self.key.lock();
        let word = KeyWord::parse(word).ok_or_else(|| refused("Cannot parse key size"))?;
        if word.size != key.size() {
            return Err(refused(&format!(
                "the key's size may not be changed: it is {} bytes, and {} were given",
                key.size(),
                word.size
            )));
        }
        key.set(&word, &self.spec, self.data.features.sectors)
            .map_err(|BadKey { reason, errno }| {
                let reason = format!("{NAME}: Error decoding and setting key: {reason}");
                MessageError::new(reason, errno)
            })
    }

    fn table(&self, for_successor: bool, out: &mut String) {
        let Data {
            device,
            start,
            iv_offset,
            features,
            ..
        } = &*self.data;
        let rest = format!(" {iv_offset} {device} {start}{}", features.words());
        let key = self.key.lock();
        // At once: a text that grows leaves a copy behind.
        out.reserve(self.spec.text.len() + 1 + key.told_len() + rest.len());
        out.push_str(&self.spec.text);
        out.push(' ');
        match for_successor {
            true => key.tell_kept(out),
            false => key.tell(out),
        }
        out.push_str(&rest);
    }

    fn measurement(&self, out: &mut String) {
        let features = &self.data.features;
        out.push_str(&measured(NAME, VERSION));
        for (name, set) in [
            ("allow_discards", features.allow_discards),
            ("same_cpu_crypt", features.same_cpu_crypt),
            ("submit_from_crypt_cpus", features.submit_from_crypt_cpus),
            ("no_read_workqueue", features.no_read_workqueue),
            ("no_write_workqueue", features.no_write_workqueue),
            ("iv_large_sectors", features.sectors.counted_large),
        ] {
            out.push_str(&format!(",{name}={}", if set { 'y' } else { 'n' }));
        }
        if features.sectors.bytes != 512 {
            out.push_str(&format!(",sector_size={}", features.sectors.bytes));
        }
        out.push_str(&format!(
            ",cipher_string={},key_size={},key_parts=1,key_extra_size=0,key_mac_size=0;",
            self.spec.text,
            self.key.lock().size()
        ));
    }
}

impl Target for Crypt {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        self.data.map(io)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let bytes = u32::from(self.data.features.sectors.bytes);
        limits.logical_block_size = limits.logical_block_size.max(bytes);
        limits.physical_block_size = limits.physical_block_size.max(bytes);
        limits.io_min = limits.io_min.max(bytes);
        // Zeroes must be encrypted: the core writes them.
        limits.max_write_zeroes = Sector::ZERO;
        if !self.data.features.allow_discards {
            limits.max_discard = Sector::ZERO;
            limits.discard_granularity = 0;
        } else if limits.supports_discard() {
            limits.discard_granularity = limits.discard_granularity.max(bytes);
        }
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => {}
            StatusKind::Table => self.table(flags.for_successor, out),
            StatusKind::Measurement => self.measurement(out),
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let is = |index: usize, word: &str| {
            let given: Option<&String> = argv.get(index);
            given.is_some_and(|given| given.eq_ignore_ascii_case(word))
        };
        if argv.len() < 2 || !is(0, "key") {
            return Err(refused("unrecognised message received."));
        }
        if !self.suspended.load(Ordering::Acquire) {
            return Err(refused("not suspended during key manipulation."));
        }
        match argv {
            [_, _, key] if is(1, "set") => self.set_key(key)?,
            [_, _] if is(1, "wipe") => self.key.lock().wipe(),
            _ => return Err(refused("unrecognised message received.")),
        }
        Ok(None)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: self.data.start,
            len: self.len,
        };
        visit(&self.data.device, role);
    }

    fn postsuspend(&self) {
        self.suspended.store(true, Ordering::Release);
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        if self.key.lock().is_valid() || self.was_wiped.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let reason = "aborting resume - crypt key is not set.";
        Err(ResumeError::new(NAME, reason, EAGAIN))
    }

    fn resume(&self) {
        self.key.lock().used();
        self.suspended.store(false, Ordering::Release);
    }
}

fn refused(reason: &str) -> MessageError {
    MessageError::new(format!("{NAME}: {reason}"), EINVAL)
}

const NAME: &str = "crypt";
const VERSION: [u32; 3] = [1, 24, 0];
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
