//! Any bytes as the XML that `thin_restore` takes.
//!
//! What is accepted must be a pool without a fault: its dump must be accepted as well and say the same.

use std::sync::Arc;

use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::MetadataDevice;
use thinmap_thin_tools::dump::{DumpOptions, Overrides, Xml, dump};
use thinmap_thin_tools::restore::restore;
use thinmap_thin_tools::{RootChoice, Source};

use super::Target;
use super::metadata::good_image;

pub const TARGET: Target = Target {
    name: "metadata_xml",
    run,
    seeds,
};

/// Some more than inputs of the usual length can fill.
const BLOCKS: u64 = 512;

fn run(mut bytes: &[u8]) {
    let disk = SimMetadataDisk::new(BLOCKS);
    if restore(&mut bytes, None, &*disk, &Overrides::default(), true).is_err() {
        return;
    }
    let text = dumped(disk);
    let again = SimMetadataDisk::new(BLOCKS);
    let mut rest = text.as_slice();
    restore(&mut rest, None, &*again, &Overrides::default(), true)
        .expect("our own XML is accepted");
    let text_again = dumped(again);
    assert!(text == text_again, "a dump of a dump is another one");
}

fn dumped(disk: Arc<dyn MetadataDevice>) -> Vec<u8> {
    let source = Source::of(disk, RootChoice::Live).expect("a pool");
    let options = DumpOptions {
        dev_ids: Vec::new(),
        skip_mappings: false,
        quiet: true,
        overrides: Overrides::default(),
    };
    let mut text = Vec::new();
    dump(&source, &options, &Xml, &mut text).expect("what was restored is whole");
    text
}

fn seeds() -> Vec<Vec<u8>> {
    let words: &[&str] = &[
        r#"<superblock uuid="" time="2" transaction="7" flags="0" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="1" mapped_blocks="11" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="5" length="10" time="0"/>
    <single_mapping origin_block="12" data_block="99" time="1"/>
  </device>
  <device dev_id="9" mapped_blocks="0" transaction="5" creation_time="2" snap_time="2"/>
</superblock>"#,
        r#"<superblock uuid="u" time="0" transaction="0" version="2" data_block_size="64" nr_data_blocks="0"/>"#,
        r#"<superblock time="0" transaction="1" data_block_size="128" nr_data_blocks="100">
  <def name="d"><range_mapping origin_begin="0" data_begin="0" length="4" time="0"/></def>
  <device dev_id="0" mapped_blocks="4" transaction="1" creation_time="0" snap_time="0"><ref name="d"/></device>
</superblock>"#,
    ];
    let mut seeds: Vec<Vec<u8>> = words.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.push(dumped(good_image().copy()));
    seeds
}
