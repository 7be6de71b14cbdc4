//! What restore does with XML that no dump would write, and with devices that are too small or fail.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use thinmap_thin_metadata::{Block4k, MetadataDevice};
use thinmap_thin_tools::dump::{DumpOptions, Overrides, Xml, dump};
use thinmap_thin_tools::restore::{Written, restore};
use thinmap_thin_tools::{RootChoice, Source};
use thinmap_units::MetaBlock;

/// A device in memory that fails from its Nth write on.
struct Disk {
    blocks: std::sync::Mutex<Vec<Block4k>>,
    writes_left: AtomicU64,
}

impl Disk {
    fn new(blocks: usize, writes: u64) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            blocks: std::sync::Mutex::new(Block4k::row(blocks)),
            writes_left: AtomicU64::new(writes),
        })
    }

    fn spend(&self) -> io::Result<()> {
        let left = self.writes_left.load(Relaxed);
        if left == 0 {
            return Err(io::Error::other("the disk is broken"));
        }
        self.writes_left.store(left - 1, Relaxed);
        Ok(())
    }
}

impl MetadataDevice for Disk {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.blocks.lock().expect("lock").len() as u64)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> io::Result<()> {
        let blocks = self.blocks.lock().expect("lock");
        let found = blocks.get(block.raw() as usize);
        buf.0 = found.ok_or(io::ErrorKind::UnexpectedEof)?.0;
        Ok(())
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> io::Result<()> {
        self.spend()?;
        let mut blocks = self.blocks.lock().expect("lock");
        for (block, bytes) in batch {
            blocks[block.raw() as usize].0 = bytes.0;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.spend()
    }
}

fn pool(devices: &str) -> String {
    format!(
        "<superblock uuid=\"\" time=\"1\" transaction=\"2\" flags=\"0\" version=\"2\" \
         data_block_size=\"128\" nr_data_blocks=\"100000\">\n{devices}</superblock>\n"
    )
}

fn device(id: u64, mapped: u64, mappings: &str) -> String {
    format!(
        "  <device dev_id=\"{id}\" mapped_blocks=\"{mapped}\" transaction=\"0\" creation_time=\"0\" \
         snap_time=\"1\">\n{mappings}  </device>\n"
    )
}

fn range(begin: u64, data: u64, length: u64) -> String {
    if length == 1 {
        return format!(
            "    <single_mapping origin_block=\"{begin}\" data_block=\"{data}\" time=\"0\"/>\n"
        );
    }
    format!(
        "    <range_mapping origin_begin=\"{begin}\" data_begin=\"{data}\" length=\"{length}\" \
         time=\"0\"/>\n"
    )
}

fn restored(xml: &str, disk: &Disk) -> Result<Written, String> {
    restore(&mut xml.as_bytes(), None, disk, &Overrides::default(), true)
        .map_err(|error| error.to_string())
}

fn dumped(disk: &std::sync::Arc<Disk>) -> String {
    let source = Source::of(disk.clone(), RootChoice::Live).expect("a pool");
    let mut text = Vec::new();
    dump(&source, &DumpOptions::default(), &Xml, &mut text).expect("dump");
    String::from_utf8(text).expect("text")
}

#[test]
fn volumes_of_every_size_come_back() {
    let mut devices = String::new();
    // Around the borders of one, two and 252 nodes, where the last nodes are evened out.
    for (id, blocks) in [
        1, 251, 252, 253, 503, 504, 505, 756, 63_503, 63_504, 63_505, 63_757,
    ]
    .into_iter()
    .enumerate()
    {
        devices += &device(id as u64, blocks, &range(7, 100, blocks));
    }
    devices += &device(99, 0, "");
    let xml = pool(&devices);
    let disk = Disk::new(4096, u64::MAX);
    let written = restored(&xml, &disk).expect("restored");
    assert_eq!((written.volumes, written.data_blocks), (13, 63_757));
    assert!(dumped(&disk) == xml);
    assert_eq!(thinmap_thin_metadata::check(disk).expect("check").len(), 0);
}

#[test]
fn mapped_blocks_are_counted_not_believed() {
    let disk = Disk::new(256, u64::MAX);
    let wrong = pool(&device(1, 77, &range(0, 0, 5)));
    restored(&wrong, &disk).expect("restored");
    assert_eq!(dumped(&disk), pool(&device(1, 5, &range(0, 0, 5))));
}

#[test]
fn xml_that_makes_no_pool_is_refused_with_its_line() {
    let two = |first: &str, second: &str| pool(&device(1, 0, &format!("{first}{second}")));
    let cases = [
        (
            two(&range(10, 0, 5), &range(9, 50, 1)),
            "line 4: volume 1: the mapping of block 9",
        ),
        (two(&range(10, 0, 5), &range(14, 50, 1)), "must ascend"),
        (two(&range(0, 99_999, 2), ""), "data blocks 99999..100001"),
        (two(&range(u64::MAX, 0, 2), ""), "impossible length"),
        (two(&range(0, 0, u64::MAX), ""), "the pool has 100000"),
        (
            pool(&(device(5, 0, "") + &device(5, 0, ""))),
            "line 4: volume 5 is there twice",
        ),
        (pool(&device(1 << 24, 0, "")), "id 16777216"),
        (
            pool("").replace("\"128\"", "\"100\""),
            "a data block of 100 sectors",
        ),
        (
            pool("").replace("version=\"2\"", "version=\"3\""),
            "version 3",
        ),
        (
            pool("").replace("\"100000\"", "\"9999999999999\""),
            "more than the format can name",
        ),
        (
            pool("").replace("\"100000\"", "\"1099511627776\""),
            "does not fit",
        ),
    ];
    for (xml, wanted) in cases {
        let disk = Disk::new(256, u64::MAX);
        let error = restored(&xml, &disk).expect_err(wanted);
        assert!(error.contains(wanted), "{error}: {wanted}");
    }
}

#[test]
fn fault_at_every_write_leaves_a_whole_pool_or_none() {
    let old = pool(&device(1, 5, &range(0, 0, 5)));
    let new = pool(&device(2, 2000, &range(0, 0, 2000)));
    let mut ended = [0, 0, 0];
    for writes in 0.. {
        let disk = Disk::new(256, u64::MAX);
        restored(&old, &disk).expect("the old pool");
        disk.writes_left.store(writes, Relaxed);
        let done = restored(&new, &disk);
        let source = Source::of(disk.clone(), RootChoice::Live);
        match (source.is_ok(), done.is_ok()) {
            (false, false) => ended[0] += 1,
            // The old pool before the first write; the new one when only the last flush failed.
            (true, false) => {
                let text = dumped(&disk);
                assert!(text == old || text == new, "{text}");
                ended[1] += 1;
            }
            (_, true) => {
                assert!(dumped(&disk) == new);
                ended[2] += 1;
                break;
            }
        }
    }
    assert!(ended.iter().all(|count| *count > 0), "{ended:?}");
}
