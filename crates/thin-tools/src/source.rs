//! A pool's metadata as a tool reads it.

use std::path::Path;
use std::sync::Arc;

use thinmap_persistent_data::{MetadataDevice, MetadataError};
use thinmap_thin_metadata::{DeviceDetails, Superblock};

use crate::nodes::Nodes;
use crate::{Access, Image, RootChoice, Roots, ToolError};

/// Bytes of a volume's details.
const DETAILS_BYTES: usize = DeviceDetails::SIZE;

/// One volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its id.
    pub id: u64,
    /// What the pool knows of it.
    pub details: DeviceDetails,
    /// The root of its mappings.
    pub root: u64,
}

/// An open pool's metadata.
pub struct Source {
    nodes: Nodes,
    roots: Roots,
}

impl Source {
    /// Opens `path`; claims it unless a metadata snapshot is read.
    ///
    /// # Errors
    /// The image cannot be opened, the chosen superblock not used.
    pub fn open(path: &Path, choice: RootChoice) -> Result<Self, ToolError> {
        let image = Arc::new(Image::open(path, Access::of(choice))?);
        Self::of(image, choice).map_err(|error| error.on(path))
    }

    /// The metadata on `device`.
    ///
    /// # Errors
    /// The chosen superblock cannot be used.
    pub fn of(device: Arc<dyn MetadataDevice>, choice: RootChoice) -> Result<Self, ToolError> {
        let roots = Roots::read(&*device, choice)?;
        Ok(Self {
            nodes: Nodes::new(device),
            roots,
        })
    }

    /// The trees' nodes.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The chosen superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.roots.superblock
    }

    /// The superblock of the pool itself.
    pub fn live_superblock(&self) -> &Superblock {
        &self.roots.live
    }

    /// Every volume that has details, by id.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, also when a volume has no mapping tree.
    pub fn volumes(&self) -> Result<Vec<Volume>, ToolError> {
        let mut roots = Vec::new();
        self.nodes
            .entries::<8>(self.superblock().data_mapping_root, |id, root| {
                roots.push((id, u64::from_le_bytes(root)));
                Ok(())
            })?;
        let mut volumes = Vec::with_capacity(roots.len());
        let mut roots = roots.into_iter().peekable();
        self.nodes.entries::<DETAILS_BYTES>(
            self.superblock().device_details_root,
            |id, details| {
                while roots.next_if(|(other, _)| *other < id).is_some() {}
                let Some((_, root)) = roots.next_if(|(other, _)| *other == id) else {
                    let root = self.superblock().data_mapping_root;
                    let what = format!("volume {id} has details but no mapping tree");
                    return Err(MetadataError::corrupt(root, what));
                };
                volumes.push(Volume {
                    id,
                    details: DeviceDetails::unpack(&details),
                    root,
                });
                Ok(())
            },
        )?;
        Ok(volumes)
    }

    /// The root of volume `id`'s mappings; `None` when there is no such volume.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn root_of(&self, id: u64) -> Result<Option<u64>, ToolError> {
        let mut block = self.superblock().data_mapping_root;
        let levels = self.nodes.levels_below(block)?;
        for _ in 0..=levels {
            let node = self.nodes.node(block)?;
            let at = (0..node.len()).take_while(|at| node.key(*at) <= id).last();
            let Some(at) = at else { return Ok(None) };
            let (key, value) = (node.key(at), node.value_u64(at));
            if node.is_leaf() {
                return Ok((key == id).then_some(value));
            }
            block = value;
        }
        let what = "btree leaves are not all at one depth";
        Err(MetadataError::corrupt(block, what).into())
    }
}
