//! One module per target, and the list of them.

mod control_frames;
mod dm_ioctl;
mod fuse;
mod hostile_metadata;
mod hostile_pool;
mod metadata;
mod metadata_damage;
mod metadata_image;
mod metadata_repair;
mod metadata_xml;
mod nbd;
mod table_lines;
mod traffic;

/// A fuzz target.
pub struct Target {
    /// Its name: of the libFuzzer binary, of the corpus, in scripts.
    pub name: &'static str,
    /// Does whatever the input says; panics when something is wrong.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const ALL: &[Target] = &[
    metadata_image::TARGET,
    metadata_damage::TARGET,
    metadata_repair::TARGET,
    metadata_xml::TARGET,
    hostile_pool::TARGET,
    hostile_metadata::TARGET,
    table_lines::TARGET,
    dm_ioctl::TARGET,
    control_frames::TARGET,
    nbd::TARGET,
    fuse::TARGET,
];

/// The target of this name.
///
/// # Panics
/// When there is none.
pub fn by_name(name: &str) -> &'static Target {
    ALL.iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("there is no fuzz target {name}"))
}
