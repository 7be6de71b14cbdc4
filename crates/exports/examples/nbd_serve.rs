//! Serves a memory device or a file over NBD, for measuring and for trying clients:
//! `nbd_serve SOCKET memory MIB` or `nbd_serve SOCKET file PATH`. Ends at the end of its standard input.

use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_block::backing::{FileDevice, MemoryDevice, OpenMode};

use thinmap_exports::nbd::{NbdConfig, NbdServer};
use thinmap_units::Sector;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(kind), Some(what)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: nbd_serve SOCKET memory MIB | file PATH".into());
    };
    let device: Arc<dyn BlockDevice> = match kind.as_str() {
        "memory" => Arc::new(MemoryDevice::new(Sector(what.parse::<u64>()? * 2048))),
        _ => Arc::new(FileDevice::open(
            what.as_ref(),
            OpenMode {
                read_only: false,
                exclusive: false,
            },
        )?),
    };
    let server = NbdServer::start(NbdConfig {
        unix: Some(socket.into()),
        ..NbdConfig::default()
    })?;
    server.add_export("disk", device, false)?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.shutdown();
    Ok(())
}
