//! Serves a file as a block device until its standard input ends: for measuring the way through FUSE and loop.
//!
//! Usage: serve_file FILE RUN_DIR [QUEUES]

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use thinmap_block::backing::{FileDevice, OpenMode};
use thinmap_exports::block_node::{self, NodesConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, run_dir, queues @ ..] = &args[..] else {
        return Err("usage: serve_file FILE RUN_DIR [QUEUES]".into());
    };
    let queues = queues.first().map_or(Ok(2), |text| text.parse())?;
    let run_dir = Path::new(run_dir).to_owned();
    let device = FileDevice::open(
        Path::new(file),
        OpenMode {
            read_only: false,
            exclusive: false,
        },
    )?;
    let (nodes, notes) = block_node::open(&NodesConfig {
        run_dir,
        queues,
        enabled: true,
    });
    notes.iter().for_each(|note| eprintln!("{note}"));
    let node = nodes.create(None)?;
    node.activate(Arc::new(device), "serve_file", false)?;
    println!("{}", node.path().display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    node.remove(true)?;
    nodes.shutdown();
    Ok(())
}
