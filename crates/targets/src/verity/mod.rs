//! `verity`: a read-only line whose blocks are held against a tree of digests, of which the table line has the root.
//!
//! Arguments: `<version> <data device> <hash device> <data block bytes> <hash block bytes> <data blocks> <hash start block>
//! <algorithm> <root digest> <salt> [<count> <feature>...]`. Status: `V`, or `C` once a block did not match. No messages.
//! `docs/internals/verity.md` tells what is on disk and how reads go.

mod args;
mod cache;
mod corruption;
mod features;
mod fec;
mod flat;
mod geometry;
mod hasher;
mod nodes;
mod verify;

use std::fmt::Write as _;
use std::sync::Arc;

use thinmap_block::{Io, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::Sector;

use self::args::Arguments;
use self::corruption::Corruption;
use self::features::Features;
use self::fec::{Area, Fec};
use self::nodes::{Nodes, Parts};
use self::verify::{Checked, Data};
use crate::args::measured;
use crate::workers::Workers;

/// The target type.
pub struct VerityType;

impl TargetType for VerityType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: VERSION,
            features: TargetFeatures {
                immutable: true,
                ..TargetFeatures::default()
            },
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let arguments = Arguments::parse(args, cx)?;
        let words = Words::new(&arguments);
        let features = arguments.features;
        let checked = match features.check_at_most_once {
            true => Some(Checked::new(arguments.data_blocks).ok_or_else(|| {
                let reason = "failed to allocate bitset for check_at_most_once";
                TableError::new(NAME, reason, ENOMEM)
            })?),
            false => None,
        };
        let zeroes = features.ignore_zero_blocks.then(|| {
            arguments
                .hasher
                .digest(&vec![0; arguments.data_block_bytes])
        });
        let fec = match features.fec()? {
            None => None,
            Some(_) if arguments.data_block_bytes != arguments.hash_block_bytes => {
                return Err(TableError::invalid(
                    NAME,
                    "Block sizes must match to use FEC",
                ));
            }
            Some(codes) => {
                let area = Area {
                    data: arguments.data.clone(),
                    data_blocks: arguments.data_blocks,
                    hash: arguments.hash.clone(),
                    hash_start: arguments.hash_start,
                    hash_blocks: arguments.geometry.blocks(),
                    block_bytes: arguments.data_block_bytes,
                };
                Some(Fec::new(codes, area, cx.env)?)
            }
        };
        let corruption = Corruption::new(features.mode, arguments.data.to_string());
        let nodes = Nodes::new(Parts {
            geometry: arguments.geometry,
            hasher: arguments.hasher,
            root: arguments.root,
            corruption: Arc::new(corruption),
            device: arguments.hash,
            fec,
            block_bytes: arguments.hash_block_bytes,
        });
        Ok(Arc::new(Verity {
            len: args.len,
            words,
            features,
            data: Arc::new(Data {
                begin: args.begin,
                device: arguments.data,
                block_bytes: arguments.data_block_bytes,
                nodes: Arc::new(nodes),
                checked,
                zeroes,
                workers: Workers::of(cx.env),
            }),
        }))
    }
}

struct Verity {
    len: Sector,
    words: Words,
    features: Features,
    data: Arc<Data>,
}

/// What a table line says that requests need not know.
struct Words {
    version: u32,
    hash_block_bytes: usize,
    data_blocks: u64,
    hash_start: u64,
    algorithm: String,
    salt: String,
}

impl Words {
    fn new(arguments: &Arguments) -> Self {
        Self {
            version: arguments.version,
            hash_block_bytes: arguments.hash_block_bytes,
            data_blocks: arguments.data_blocks,
            hash_start: arguments.hash_start,
            algorithm: arguments.algorithm.clone(),
            salt: match arguments.salt.as_slice() {
                [] => "-".to_owned(),
                salt => hex(salt),
            },
        }
    }
}

impl Verity {
    fn table(&self) -> String {
        let Words {
            version,
            hash_block_bytes,
            data_blocks,
            hash_start,
            algorithm,
            salt,
        } = &self.words;
        let (data, nodes) = (&self.data, &self.data.nodes);
        format!(
            "{version} {} {} {} {hash_block_bytes} {data_blocks} {hash_start} {algorithm} {} {salt}{}",
            data.device,
            nodes.device,
            data.block_bytes,
            hex(nodes.root.as_slice()),
            self.features.words()
        )
    }

    fn measurement(&self) -> String {
        let yes = |set: bool| if set { 'y' } else { 'n' };
        let nodes = &self.data.nodes;
        let mode = match self.features.mode.word() {
            Some(word) => format!(",verity_mode={word}"),
            None => String::new(),
        };
        format!(
            "{},hash_failed={},verity_version={},data_device_name={},hash_device_name={},verity_algorithm={},\
             root_digest={},salt={},ignore_zero_blocks={},check_at_most_once={}{mode};",
            measured(NAME, VERSION),
            self.state(),
            self.words.version,
            self.data.device,
            nodes.device,
            self.words.algorithm,
            hex(nodes.root.as_slice()),
            self.words.salt,
            yes(self.features.ignore_zero_blocks),
            yes(self.features.check_at_most_once),
        )
    }

    fn state(&self) -> char {
        match self.data.nodes.corruption.is_found() {
            true => 'C',
            false => 'V',
        }
    }
}

impl Target for Verity {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        self.data.map(io)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let bytes = u32::try_from(self.data.block_bytes).unwrap_or(u32::MAX);
        limits.logical_block_size = limits.logical_block_size.max(bytes);
        limits.physical_block_size = limits.physical_block_size.max(bytes);
        limits.io_min = limits.io_min.max(limits.logical_block_size);
        limits.max_discard = Sector::ZERO;
        limits.discard_granularity = 0;
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => out.push(self.state()),
            StatusKind::Table => out.push_str(&self.table()),
            StatusKind::Measurement => out.push_str(&self.measurement()),
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.len,
        };
        visit(&self.data.device, role);
        visit(&self.data.nodes.device, DeviceRole::Other);
        if let Some(fec) = &self.data.nodes.fec {
            visit(&fec.codes().device, DeviceRole::Other);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

const NAME: &str = "verity";
const VERSION: [u32; 3] = [1, 9, 0];
const ENOMEM: i32 = 12;
