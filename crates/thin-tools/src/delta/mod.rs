//! `delta`: which blocks two volumes map alike, differently, or only one of them.
//!
//! Each volume's mappings come as a stream from a thread of its own; memory goes with neither's size.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use thinmap_persistent_data::MetadataError;

use crate::source::Source;
use crate::{Run, Times, ToolError};

mod format;

pub use format::{DeltaFormat, JsonDelta, SimpleXml, VerboseXml};

/// Leaves read at one go.
const PIECE_LEAVES: usize = 256;
/// Pieces that wait between a reader and the comparison.
const PIECES_WAITING: usize = 4;

/// One side of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The volume with this id.
    Thin(u64),
    /// The mapping tree whose root is in this block.
    Root(u64),
}

/// How a range of blocks compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only the first volume maps it.
    LeftOnly,
    /// Only the second does.
    RightOnly,
    /// Both map it, to different data blocks.
    Different,
    /// Both map it to the same.
    Same,
}

/// A range of blocks that compare alike. What it is mapped to is that of its first block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// How it compares.
    pub kind: Kind,
    /// The first block.
    pub begin: u64,
    /// How many.
    pub len: u64,
    /// The first volume's data block, unless `RightOnly`.
    pub left_data: u64,
    /// The second volume's data block, unless `LeftOnly`.
    pub right_data: u64,
}

/// Writes how `left` and `right` differ.
///
/// # Errors
/// `Refused`: no such volume. `Metadata`, `Output`.
pub fn delta<F: DeltaFormat>(
    source: &Source,
    left: Side,
    right: Side,
    format: &mut F,
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    let left_root = root_of(source, left, 1)?;
    let right_root = root_of(source, right, 2)?;
    let mut text = Vec::new();
    format.begin(source.superblock(), left, right, &mut text);
    std::thread::scope(|scope| -> Result<(), ToolError> {
        let stream = |root| {
            let (sender, receiver) = sync_channel(PIECES_WAITING);
            scope.spawn(move || produce(source, root, &sender));
            Stream::new(receiver)
        };
        let (mut left, mut right) = (stream(left_root), stream(right_root));
        while let Some(difference) = next_difference(&mut left, &mut right)? {
            format.add(&difference, &mut text);
            if text.len() >= 1 << 16 {
                out.write_all(&text)?;
                text.clear();
            }
        }
        Ok(())
    })?;
    format.end(&mut text);
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}

fn root_of(source: &Source, side: Side, number: u8) -> Result<u64, ToolError> {
    match side {
        Side::Root(block) => Ok(block),
        Side::Thin(id) => source.root_of(id)?.ok_or_else(|| {
            ToolError::Refused(format!("the pool has no volume {id} (--thin{number})"))
        }),
    }
}

type Piece = Result<Vec<Run>, MetadataError>;

/// Sends the runs of the tree at `root`, until all are sent or nobody wants more.
fn produce(source: &Source, root: u64, sender: &SyncSender<Piece>) {
    let nodes = source.nodes();
    let mut leaves = nodes.leaves(root);
    loop {
        let piece: Result<Vec<u64>, _> = leaves.by_ref().take(PIECE_LEAVES).collect();
        let runs = match piece {
            Ok(piece) if piece.is_empty() => return,
            Ok(piece) => nodes.runs(&piece, Times::Ignored),
            Err(error) => Err(error),
        };
        let failed = runs.is_err();
        if sender.send(runs).is_err() || failed {
            return;
        }
    }
}

/// The runs of one volume; those that go on over the border of a piece are joined.
struct Stream {
    pieces: Receiver<Piece>,
    runs: std::vec::IntoIter<Run>,
    /// What is left of the run at hand.
    head: Option<Run>,
    /// The run behind it.
    ahead: Option<Run>,
    begun: bool,
}

impl Stream {
    fn new(pieces: Receiver<Piece>) -> Self {
        Self {
            pieces,
            runs: Vec::new().into_iter(),
            head: None,
            ahead: None,
            begun: false,
        }
    }

    fn fetch(&mut self) -> Result<Option<Run>, ToolError> {
        loop {
            if let Some(run) = self.runs.next() {
                return Ok(Some(run));
            }
            match self.pieces.recv() {
                Ok(piece) => self.runs = piece?.into_iter(),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Makes `head` the whole of the next run, if there is none at hand.
    fn fill(&mut self) -> Result<Option<Run>, ToolError> {
        if !self.begun {
            self.begun = true;
            self.ahead = self.fetch()?;
        }
        if self.head.is_none()
            && let Some(mut run) = self.ahead.take()
        {
            while let Some(next) = self.fetch()? {
                if next.thin < run.end() {
                    let what = format!("the mappings do not ascend at block {}", next.thin);
                    return Err(ToolError::Refused(what));
                }
                if !Times::Ignored.join(&run, &next) {
                    self.ahead = Some(next);
                    break;
                }
                run.len += next.len;
            }
            self.head = Some(run);
        }
        Ok(self.head)
    }

    /// Takes `len` blocks off the run at hand.
    fn consume(&mut self, len: u64) {
        self.head = self.head.take().filter(|run| run.len > len).map(|run| Run {
            thin: run.thin + len,
            data: run.data + len,
            len: run.len - len,
            ..run
        });
    }
}

fn next_difference(left: &mut Stream, right: &mut Stream) -> Result<Option<Difference>, ToolError> {
    let (l, r) = match (left.fill()?, right.fill()?) {
        (None, None) => return Ok(None),
        (Some(l), Some(r)) => (l, r),
        (Some(l), None) => {
            left.consume(l.len);
            return Ok(Some(one_side(Kind::LeftOnly, &l, l.len)));
        }
        (None, Some(r)) => {
            right.consume(r.len);
            return Ok(Some(one_side(Kind::RightOnly, &r, r.len)));
        }
    };
    if l.thin < r.thin {
        let len = l.len.min(r.thin - l.thin);
        left.consume(len);
        return Ok(Some(one_side(Kind::LeftOnly, &l, len)));
    }
    if r.thin < l.thin {
        let len = r.len.min(l.thin - r.thin);
        right.consume(len);
        return Ok(Some(one_side(Kind::RightOnly, &r, len)));
    }
    let len = l.len.min(r.len);
    left.consume(len);
    right.consume(len);
    Ok(Some(Difference {
        kind: if l.data == r.data {
            Kind::Same
        } else {
            Kind::Different
        },
        begin: l.thin,
        len,
        left_data: l.data,
        right_data: r.data,
    }))
}

fn one_side(kind: Kind, run: &Run, len: u64) -> Difference {
    Difference {
        kind,
        begin: run.thin,
        len,
        left_data: run.data,
        right_data: run.data,
    }
}
