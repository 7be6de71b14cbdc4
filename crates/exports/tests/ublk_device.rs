//! A block device through the kernel's own ublk driver, where it has one.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, QueueLimits};
use thinmap_exports::block_node::{self, NodeKind, NodesConfig};
use thinmap_exports::ublk;
use thinmap_units::Sector;

/// Direct I/O wants aligned memory.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// A device in memory that frees 64 KiB at a time.
struct Coarse(MemoryDevice);

impl BlockDevice for Coarse {
    fn limits(&self) -> QueueLimits {
        QueueLimits {
            discard_granularity: 65_536,
            ..self.0.limits()
        }
    }

    fn size(&self) -> Sector {
        self.0.size()
    }

    fn submit(&self, io: Io) {
        self.0.submit(io);
    }
}

#[test]
fn a_real_block_device_is_written_resized_and_removed() {
    if let Some(missing) = ublk::why_not() {
        if matches!(missing, ublk::Missing::NoDriver) {
            println!("SKIP ublk: this kernel has no ublk driver");
        } else {
            println!("SKIP ublk: {missing}");
        }
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let config = NodesConfig {
        run_dir: dir.path().to_owned(),
        queues: 2,
        enabled: true,
    };
    let (nodes, notes) = block_node::open(&config);
    assert_eq!(nodes.kind(), NodeKind::Ublk, "{notes:?}");
    let node = nodes.create(None).expect("create");
    let number = node.dev_no();
    let device = Arc::new(Coarse(MemoryDevice::new(Sector(2048))));
    // A new device does not have these limits yet: it is started anew, under its number.
    node.activate(device.clone(), "test", false)
        .expect("activate");
    assert_eq!(node.dev_no(), number);
    let sys = format!("/sys/dev/block/{number}");
    let size = || std::fs::read_to_string(format!("{sys}/size")).expect("size");
    assert_eq!(size().trim(), "2048");
    let granularity = std::fs::read_to_string(format!("{sys}/queue/discard_granularity"));
    assert_eq!(granularity.expect("granularity").trim(), "65536");

    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(node.path())
        .expect("open");
    let mut page = Page([0xa5; 4096]);
    file.write_all_at(&page.0, 8192).expect("write");
    file.sync_all().expect("flush");
    page.0.fill(0);
    file.read_exact_at(&mut page.0, 8192).expect("read");
    assert!(page.0.iter().all(|byte| *byte == 0xa5));

    device.0.grow(Sector(4096));
    node.refresh().expect("refresh");
    assert_eq!(size().trim(), "4096");
    drop(file);
    node.remove(false).expect("remove");
    nodes.shutdown();
}
