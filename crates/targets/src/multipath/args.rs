//! The table line: `<count> <feature>... <count> [<handler>...] <groups> <initial group>`, and per group `<selector> <count> <argument>...
//! <paths> <arguments per path> (<device> <argument>...){paths}`.
//!
//! COMPAT: checked in the kernel's order, which opens each device as it comes by.

use thinmap_dm::{ConstructCx, DeviceUse, TableError};

use super::NAME;
use super::selector::{PathArguments, Selector};
use crate::args::{open_device, parse_u64};

/// Everything a table line says.
pub(super) struct Arguments {
    pub(super) features: Features,
    /// A hardware handler's name. There are none here: it is told again and does nothing.
    pub(super) handler: Option<String>,
    pub(super) groups: Vec<GroupArguments>,
    /// Index of the group to begin with; `None` where the number was that of no group.
    pub(super) initial: Option<usize>,
}

/// One priority group of a table line.
pub(super) struct GroupArguments {
    pub(super) selector: Selector,
    pub(super) paths: Vec<(DeviceUse, PathArguments)>,
}

/// The optional features.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Features {
    pub(super) queue_if_no_path: bool,
    pub(super) retain_attached_hw_handler: bool,
    /// 1 to 50; 0 where it was not given.
    pub(super) pg_init_retries: u32,
    /// Milliseconds.
    pub(super) pg_init_delay: Option<u32>,
    /// `queue_mode bio`. The modes differ in what a suspend does to `queue_if_no_path`, and in the table line.
    pub(super) bio_based: bool,
}

impl Arguments {
    pub(super) fn parse(argv: &[String], cx: &ConstructCx<'_>) -> Result<Self, TableError> {
        let mut words = Words(argv);
        let mut features = Features::parse(&mut words)?;
        // Without request queues handlers cannot be attached, only found.
        features.retain_attached_hw_handler |= features.bio_based;
        let handler = parse_handler(&mut words, features.bio_based)?;
        let count = words.number(0, 1024, "invalid number of priority groups")?;
        let initial = words.number(0, 1024, "invalid initial priority group number")?;
        if (count == 0) != (initial == 0) {
            return Err(invalid("invalid initial priority group"));
        }
        let handled = handler.as_ref();
        let mut groups = Vec::new();
        while !words.0.is_empty() {
            groups.push(GroupArguments::parse(&mut words, handled, cx)?);
        }
        if groups.len() != count as usize {
            return Err(invalid("priority group count mismatch"));
        }
        let initial = (initial as usize).checked_sub(1);
        Ok(Self {
            features,
            handler: handler.map(|handler| handler.name),
            initial: initial.filter(|index| *index < groups.len()),
            groups,
        })
    }
}

impl Features {
    fn parse(words: &mut Words<'_>) -> Result<Self, TableError> {
        let count = words.count(8, "invalid number of feature args")?;
        let mut features = Self::default();
        let mut left = Words(words.take(count));
        while let Some(word) = left.shift() {
            let has_value = !left.0.is_empty();
            match word.to_ascii_lowercase().as_str() {
                "queue_if_no_path" => features.queue_if_no_path = true,
                "retain_attached_hw_handler" => features.retain_attached_hw_handler = true,
                "pg_init_retries" if has_value => {
                    let reason = "pg_init_retries must be between 1 and 50";
                    features.pg_init_retries = left.number(1, 50, reason)?;
                }
                "pg_init_delay_msecs" if has_value => {
                    let reason = "pg_init_delay_msecs must be between 0 and 60000";
                    features.pg_init_delay = Some(left.number(0, 60_000, reason)?);
                }
                "queue_mode" if has_value => {
                    features.bio_based = is_bio_based(left.shift().unwrap_or_default())?;
                }
                _ => {
                    let reason = format!("Unrecognised multipath feature request: '{word}'");
                    return Err(invalid(reason));
                }
            }
        }
        Ok(features)
    }
}

fn is_bio_based(mode: &str) -> Result<bool, TableError> {
    match mode.to_ascii_lowercase().as_str() {
        "bio" => Ok(true),
        "rq" | "mq" => Ok(false),
        _ => Err(invalid(format!("Unknown 'queue_mode' requested: '{mode}'"))),
    }
}

struct Handler {
    name: String,
    has_parameters: bool,
}

fn parse_handler(words: &mut Words<'_>, bio_based: bool) -> Result<Option<Handler>, TableError> {
    let count = words.count(1024, "invalid number of hardware handler args")?;
    let [name, parameters @ ..] = words.take(count) else {
        return Ok(None);
    };
    if bio_based {
        tracing::warn!("bio-based multipath doesn't allow hardware handler args");
        return Ok(None);
    }
    Ok(Some(Handler {
        name: name.clone(),
        has_parameters: !parameters.is_empty(),
    }))
}

impl GroupArguments {
    fn parse(
        words: &mut Words<'_>,
        handler: Option<&Handler>,
        cx: &ConstructCx<'_>,
    ) -> Result<Self, TableError> {
        let [name, _, ..] = words.0 else {
            return Err(invalid("not enough priority group arguments"));
        };
        words.shift();
        if !Selector::NAMES.contains(&name.as_str()) {
            return Err(invalid(format!("unknown path selector type: '{name}'")));
        }
        let count = words.count(1024, "invalid number of path selector args")?;
        let selector = Selector::parse(name, words.take(count))
            .ok_or_else(|| invalid("path selector constructor failed"))?;
        let paths = words.number(1, 1024, "invalid number of paths")?;
        let arguments = words.number(0, 1024, "invalid number of selector args")?;
        let mut group = Self {
            selector,
            paths: Vec::new(),
        };
        for _ in 0..paths {
            group.add_path(words.take(1 + arguments), handler, cx)?;
        }
        Ok(group)
    }

    fn add_path(
        &mut self,
        words: &[String],
        handler: Option<&Handler>,
        cx: &ConstructCx<'_>,
    ) -> Result<(), TableError> {
        let [device, arguments @ ..] = words else {
            return Err(invalid("not enough path parameters"));
        };
        let device = open_device(cx, NAME, device, false, "error getting device")?;
        if handler.is_some_and(|handler| handler.has_parameters) {
            return Err(handler_refused());
        }
        let arguments = self.selector.path_arguments(arguments).map_err(invalid)?;
        self.paths.push((device, arguments));
        Ok(())
    }
}

/// What the kernel answers where it was built without handlers: a name alone is taken, parameters are not.
fn handler_refused() -> TableError {
    let reason = "unable to set hardware handler parameters";
    TableError::new(NAME, reason, NO_HANDLERS)
}

/// The words that are left.
struct Words<'a>(&'a [String]);

impl<'a> Words<'a> {
    fn shift(&mut self) -> Option<&'a str> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// So many words, or none when there are fewer.
    fn take(&mut self, count: u32) -> &'a [String] {
        match self.0.split_at_checked(count as usize) {
            Some((taken, rest)) => {
                self.0 = rest;
                taken
            }
            None => &[],
        }
    }

    /// The next word as a number in a range, or the error `reason`.
    fn number(&mut self, min: u32, max: u32, reason: &str) -> Result<u32, TableError> {
        self.shift()
            .and_then(parse_u64)
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| invalid(reason))
    }

    /// A number of words that follow.
    fn count(&mut self, max: u32, reason: &str) -> Result<u32, TableError> {
        let count = self.number(0, max, reason)?;
        if count as usize > self.0.len() {
            return Err(invalid(reason));
        }
        Ok(count)
    }
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

const NO_HANDLERS: i32 = 16;
