//! A target's corpus in one file, since thousands of tiny files cost a repository more than their bytes.
//!
//! Length (`u32`, little-endian) and bytes of each input in turn, shortest first.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// The inputs of a packed corpus; none when there is no such file.
///
/// # Errors
/// The file cannot be read or ends inside an input.
pub fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let packed = match std::fs::read(path) {
        Ok(packed) => packed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut inputs = Vec::new();
    let mut rest = &packed[..];
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((input, tail)) = tail.split_at_checked(length) else {
            break;
        };
        inputs.push(input.to_vec());
        rest = tail;
    }
    if rest.is_empty() {
        return Ok(inputs);
    }
    let text = format!("{}: ends inside an input", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Writes a packed corpus, each input once.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, inputs: Vec<Vec<u8>>) -> io::Result<()> {
    let inputs: BTreeSet<Vec<u8>> = inputs.into_iter().collect();
    let mut inputs: Vec<Vec<u8>> = inputs.into_iter().collect();
    inputs.sort_by_key(Vec::len);
    let mut packed = Vec::new();
    for input in inputs {
        let length = u32::try_from(input.len()).map_err(io::Error::other)?;
        packed.extend_from_slice(&length.to_le_bytes());
        packed.extend_from_slice(&input);
    }
    std::fs::write(path, packed)
}

/// The inputs in a directory of one file each, in the order of their names.
///
/// # Errors
/// A file cannot be read. A directory that is not there holds none.
pub fn read_directory(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    match std::fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                files.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    files.sort();
    files.into_iter().map(std::fs::read).collect()
}
