//! The texts of a comparison: thin_delta's XML, short and verbose, and JSON.

use std::io::Write;

use thinmap_thin_metadata::Superblock;

use super::{Difference, Kind, Side};

/// A way to write a comparison. Writing to memory cannot fail, so nothing here does.
pub trait DeltaFormat {
    /// The pool, and what is compared.
    fn begin(&mut self, pool: &Superblock, left: Side, right: Side, text: &mut Vec<u8>);
    /// The next range.
    fn add(&mut self, difference: &Difference, text: &mut Vec<u8>);
    /// The end.
    fn end(&mut self, text: &mut Vec<u8>);
}

/// thin_delta's XML: ranges of a kind that follow one another are one.
#[derive(Default)]
pub struct SimpleXml {
    open: Option<Difference>,
}

impl SimpleXml {
    fn close(&mut self, text: &mut Vec<u8>) {
        if let Some(open) = self.open.take() {
            let _ = writeln!(
                text,
                "    <{} begin=\"{}\" length=\"{}\"/>",
                tag(open.kind),
                open.begin,
                open.len
            );
        }
    }
}

impl DeltaFormat for SimpleXml {
    fn begin(&mut self, pool: &Superblock, left: Side, right: Side, text: &mut Vec<u8>) {
        begin_xml(pool, left, right, text);
    }

    fn add(&mut self, difference: &Difference, text: &mut Vec<u8>) {
        match &mut self.open {
            Some(open) if goes_on(open, difference) => open.len += difference.len,
            _ => {
                self.close(text);
                self.open = Some(*difference);
            }
        }
    }

    fn end(&mut self, text: &mut Vec<u8>) {
        self.close(text);
        end_xml(text);
    }
}

/// Whether `next` belongs to the range `open`.
fn goes_on(open: &Difference, next: &Difference) -> bool {
    open.kind == next.kind && open.begin + open.len == next.begin
}

/// thin_delta's XML with data blocks (`--verbose`).
#[derive(Default)]
pub struct VerboseXml {
    open: Option<Kind>,
}

impl DeltaFormat for VerboseXml {
    fn begin(&mut self, pool: &Superblock, left: Side, right: Side, text: &mut Vec<u8>) {
        begin_xml(pool, left, right, text);
    }

    fn add(&mut self, difference: &Difference, text: &mut Vec<u8>) {
        if self.open != Some(difference.kind) {
            if let Some(open) = self.open {
                let _ = writeln!(text, "    </{}>", tag(open));
            }
            let _ = writeln!(text, "    <{}>", tag(difference.kind));
            self.open = Some(difference.kind);
        }
        let _ = write!(text, "      <range begin=\"{}\"", difference.begin);
        let _ = match difference.kind {
            Kind::Different => write!(
                text,
                " left_data_begin=\"{}\" right_data_begin=\"{}\"",
                difference.left_data, difference.right_data
            ),
            _ => write!(text, " data_begin=\"{}\"", difference.left_data),
        };
        let _ = writeln!(text, " length=\"{}\"/>", difference.len);
    }

    fn end(&mut self, text: &mut Vec<u8>) {
        if let Some(open) = self.open {
            let _ = writeln!(text, "    </{}>", tag(open));
        }
        end_xml(text);
    }
}

/// The number that stands for a side: a volume's id or a root's block.
fn number(side: Side) -> u64 {
    match side {
        Side::Thin(number) | Side::Root(number) => number,
    }
}

fn begin_xml(pool: &Superblock, left: Side, right: Side, text: &mut Vec<u8>) {
    let _ = write!(
        text,
        "<superblock uuid=\"\" time=\"{}\" transaction=\"{}\" data_block_size=\"{}\" \
         nr_data_blocks=\"{}",
        pool.time, pool.transaction_id, pool.data_block_size, pool.data_space_map.nr_blocks
    );
    if pool.held_root != 0 {
        let _ = write!(text, "\" metadata_snap=\"{}", pool.held_root);
    }
    let _ = writeln!(
        text,
        "\">\n  <diff left=\"{}\" right=\"{}\">",
        number(left),
        number(right)
    );
}

fn end_xml(text: &mut Vec<u8>) {
    text.extend_from_slice(b"  </diff>\n</superblock>\n");
}

fn tag(kind: Kind) -> &'static str {
    match kind {
        Kind::LeftOnly => "left_only",
        Kind::RightOnly => "right_only",
        Kind::Different => "different",
        Kind::Same => "same",
    }
}

/// JSON: an object with the pool's facts and `ranges`.
#[derive(Default)]
pub struct JsonDelta {
    any: bool,
}

impl DeltaFormat for JsonDelta {
    fn begin(&mut self, pool: &Superblock, left: Side, right: Side, text: &mut Vec<u8>) {
        let _ = write!(
            text,
            "{{\"time\": {}, \"transaction\": {}, \"data_block_size\": {}, \"nr_data_blocks\": {}, \
             \"left\": {}, \"right\": {}, \"ranges\": [",
            pool.time,
            pool.transaction_id,
            pool.data_block_size,
            pool.data_space_map.nr_blocks,
            number(left),
            number(right)
        );
    }

    fn add(&mut self, difference: &Difference, text: &mut Vec<u8>) {
        let _ = write!(
            text,
            "{}\n  {{\"kind\": \"{}\", \"begin\": {}, \"length\": {}",
            if self.any { "," } else { "" },
            tag(difference.kind),
            difference.begin,
            difference.len
        );
        if difference.kind != Kind::RightOnly {
            let _ = write!(text, ", \"left_data\": {}", difference.left_data);
        }
        if difference.kind != Kind::LeftOnly {
            let _ = write!(text, ", \"right_data\": {}", difference.right_data);
        }
        text.push(b'}');
        self.any = true;
    }

    fn end(&mut self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"\n]}\n");
    }
}
