//! Exports: ways to give a [`thinmap_block::BlockDevice`] to those who want one. None knows device mapper.

pub mod nbd;
