//! FUSE files as nodes of their own, for users without loop devices.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::BlockDevice;
use thinmap_units::DevNo;

use super::file::{DeviceFile, Geometry};
use super::server::FuseServer;
use crate::block_node::{
    BlockNode, BlockNodes, NodeError, NodeKind, PSEUDO_MAJOR, PseudoMinors, SavedNode,
};

/// Makes FUSE files.
pub(crate) struct FuseFileNodes {
    server: Arc<FuseServer>,
    minors: Arc<PseudoMinors>,
}

impl FuseFileNodes {
    pub(crate) fn new(server: Arc<FuseServer>) -> Self {
        Self {
            server,
            minors: Arc::default(),
        }
    }
}

impl BlockNodes for FuseFileNodes {
    fn kind(&self) -> NodeKind {
        NodeKind::FuseFile
    }

    fn create(&self, minor: Option<u32>) -> Result<Arc<dyn BlockNode>, NodeError> {
        let minor = self.minors.take(minor)?;
        Ok(Arc::new(FuseFileNode {
            file: self.server.add_file(),
            server: self.server.clone(),
            minor,
            minors: self.minors.clone(),
            adopted: false,
            state: Mutex::default(),
        }))
    }

    fn adopt(&self, saved: SavedNode) -> Result<Option<Arc<dyn BlockNode>>, NodeError> {
        let minor = self.minors.take(Some(saved.minor))?;
        Ok(Some(Arc::new(FuseFileNode {
            file: self.server.restore_file(saved.file),
            server: self.server.clone(),
            minor,
            minors: self.minors.clone(),
            adopted: true,
            state: Mutex::default(),
        })))
    }

    fn serve(&self) -> std::io::Result<()> {
        self.server.serve()
    }

    fn leave(&self, patience: Duration) {
        self.server.leave(patience);
    }

    fn shutdown(&self) {
        self.server.shutdown();
    }
}

struct FuseFileNode {
    server: Arc<FuseServer>,
    file: Arc<DeviceFile>,
    minor: u32,
    minors: Arc<PseudoMinors>,
    /// An earlier process has counted who opened it.
    adopted: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    device: Option<Arc<dyn BlockDevice>>,
    /// Asked for at activation, beyond what the device itself says.
    read_only: bool,
    removed: bool,
}

impl BlockNode for FuseFileNode {
    fn dev_no(&self) -> DevNo {
        DevNo::new(PSEUDO_MAJOR, self.minor)
    }

    fn path(&self) -> PathBuf {
        self.server.path_of(&self.file)
    }

    fn saved(&self) -> SavedNode {
        SavedNode {
            minor: self.minor,
            file: self.file.nodeid(),
            made_node: false,
        }
    }

    fn attach(&self, dev: Arc<dyn BlockDevice>, read_only: bool) {
        // Nothing of it reaches the kernel.
        let _ = self.activate(dev, "", read_only);
    }

    fn activate(
        &self,
        dev: Arc<dyn BlockDevice>,
        _: &str,
        read_only: bool,
    ) -> Result<(), NodeError> {
        let mut state = self.state.lock();
        if state.removed {
            return Err(NodeError::Gone { path: self.path() });
        }
        state.read_only = read_only && !dev.limits().read_only;
        self.file
            .attach(dev.clone(), Geometry::of(&*dev, state.read_only));
        state.device = Some(dev);
        Ok(())
    }

    fn refresh(&self) -> Result<(), NodeError> {
        let state = self.state.lock();
        if let Some(device) = &state.device {
            self.file
                .attach(device.clone(), Geometry::of(&**device, state.read_only));
        }
        Ok(())
    }

    fn open_count(&self) -> u32 {
        if self.adopted {
            self.server.descriptors_on(&self.file)
        } else {
            self.file.opens()
        }
    }

    fn remove(&self, force: bool) -> Result<(), NodeError> {
        let mut state = self.state.lock();
        if state.removed {
            return Ok(());
        }
        if !force && self.open_count() > 0 {
            return Err(NodeError::Busy { path: self.path() });
        }
        state.removed = true;
        state.device = None;
        self.server.remove_file(&self.file);
        self.minors.give_back(self.minor);
        Ok(())
    }
}
