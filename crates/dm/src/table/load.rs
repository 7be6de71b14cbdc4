//! Building a table: the rules that hold whatever the targets are, in the kernel's order.

use std::sync::Arc;

use thinmap_units::{Sector, TableLine, split_args};
use zeroize::Zeroizing;

use super::{Line, Table};
use crate::error::TableError;
use crate::registry::Registry;
use crate::target::{ConstructCx, TargetArgs, TargetInfo};

impl Table {
    /// Constructs every line's target.
    pub(crate) fn load(
        registry: Registry,
        lines: &[TableLine],
        cx: &mut ConstructCx<'_>,
    ) -> Result<Self, TableError> {
        if lines.is_empty() {
            return Err(whole("no targets specified"));
        }
        let mut table = Self {
            lines: Vec::with_capacity(lines.len()),
            read_only: cx.read_only,
            immutable_type: None,
        };
        for line in lines {
            table.add(registry, line, cx)?;
        }
        Ok(table)
    }

    /// Whether one of its targets may replace any other.
    pub(crate) fn has_wildcard(&self) -> bool {
        self.lines.iter().any(|line| line.info.features.wildcard)
    }

    fn add(
        &mut self,
        registry: Registry,
        line: &TableLine,
        cx: &mut ConstructCx<'_>,
    ) -> Result<(), TableError> {
        if let Some(alone) = self.lines.iter().find(|l| l.info.features.singleton) {
            return Err(whole(format!(
                "target type {} must appear alone in table",
                alone.info.name
            )));
        }
        if line.len == Sector::ZERO {
            return Err(whole("zero-length target"));
        }
        let end = line.start.checked_add(line.len);
        if end.is_none_or(|end| end.raw() > SECTORS_MAX) {
            return Err(whole("too large device"));
        }
        let Some(kind) = registry.find(&line.target) else {
            return Err(TableError::invalid(&line.target, "unknown target type"));
        };
        let info = kind.info();
        self.check_features(info)?;
        if line.start != self.size() {
            return Err(TableError::invalid(info.name, "Gap in table"));
        }
        // A key may be among them.
        let argv = Zeroizing::new(split_args(&line.params));
        let args = TargetArgs {
            begin: line.start,
            len: line.len,
            argv: &argv,
        };
        let target = kind.construct(&args, cx)?;
        self.lines.push(Line {
            begin: line.start,
            len: line.len,
            info,
            target,
        });
        Ok(())
    }

    fn check_features(&mut self, info: TargetInfo) -> Result<(), TableError> {
        let refuse = |reason: &str| Err(TableError::invalid(info.name, reason));
        let first = self.lines.is_empty();
        if info.features.singleton && !first {
            return refuse("singleton target type must appear alone in table");
        }
        if info.features.always_writeable && self.read_only {
            return refuse("target type may not be included in a read-only table");
        }
        let mixed = match self.immutable_type {
            Some(immutable) => immutable != info.name,
            None => info.features.immutable && !first,
        };
        if mixed {
            return refuse("immutable target type cannot be mixed with other target types");
        }
        if info.features.immutable {
            self.immutable_type = Some(info.name);
        }
        Ok(())
    }
}

/// Drops a table as soon as nobody looks at it any more, on this thread: target destructors may wait for workers, which a queue
/// thread must not.
pub(crate) fn retire<T>(mut table: Arc<T>) {
    loop {
        match Arc::try_unwrap(table) {
            Ok(last) => {
                drop(last);
                return;
            }
            // Readers hold a table only for the length of one submit or one status line.
            Err(shared) => table = shared,
        }
        std::thread::sleep(RETIRE_POLL);
    }
}

fn whole(reason: impl Into<String>) -> TableError {
    TableError::invalid("table", reason)
}

/// A device has at most `LLONG_MAX` bytes.
const SECTORS_MAX: u64 = i64::MAX as u64 >> 9;
const RETIRE_POLL: std::time::Duration = std::time::Duration::from_micros(100);
