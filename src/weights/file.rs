//! Files: read only regular ones, and replace them whole or not at all.

use super::header::{self, Header};
use super::{message, too_short};
use crate::error::{Result, ensure};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

pub(super) fn read(path: &Path) -> Result<(Header, Vec<u8>)> {
    let refuse = |cause: &dyn std::fmt::Display| message::path(path, cause);
    // before opening, because opening a device may do anything
    regular(&fs::metadata(path).map_err(|e| refuse(&e))?).map_err(|kind| refuse(&kind))?;
    let mut options = OpenOptions::new();
    options.read(true);
    // a pipe that has taken the file's place since then would block; O_NONBLOCK, here as in the systems' headers
    #[cfg(any(
        target_vendor = "apple",
        all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))
    ))]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(if cfg!(target_vendor = "apple") { 0x4 } else { 0x800 });
    }
    let mut file = options.open(path).map_err(|e| refuse(&e))?;
    // and again on the handle, because the name may stand for another file by now
    let metadata = file.metadata().map_err(|e| refuse(&e))?;
    regular(&metadata).map_err(|kind| refuse(&kind))?;
    let file_len = metadata.len();
    ensure!(file_len >= 8, too_short(file_len));
    let mut first = [0; 8];
    file.read_exact(&mut first).map_err(|e| refuse(&e))?;
    let header_len = header::length(first, file_len)?;
    let data_len = file_len - 8 - header_len;
    let header = header::parse(&exactly(&mut file, header_len).map_err(|e| refuse(&e))?, data_len)?;
    let data = exactly(&mut file, data_len).map_err(|e| refuse(&e))?;
    match file.read(&mut first) {
        Ok(0) => Ok((header, data)),
        Ok(_) => Err(refuse(&"it grew while it was read")),
        Err(error) => Err(refuse(&error)),
    }
}

fn regular(metadata: &fs::Metadata) -> Result<(), &'static str> {
    match metadata.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err("is a folder, not a regular file"),
        _ => Err("is not a regular file"),
    }
}

fn exactly(file: &mut File, len: u64) -> std::io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Replaces the file at `path` by what `write` writes: all of it, on the disk, or the old one stays.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let refuse = |doing: &str, error: std::io::Error| message::path(path, format!("{doing}: {error}"));
    let target = behind_links(path).map_err(|e| refuse("following a symbolic link", e))?;
    let permissions = match fs::symlink_metadata(&target) {
        Ok(metadata) => {
            regular(&metadata).map_err(|kind| message::path(path, kind))?;
            Some(metadata.permissions())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(refuse("looking at the file to replace", error)),
    };
    ensure!(target.file_name().is_some(), message::path(path, "names no file"));
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary =
        temporary(folder, permissions.as_ref()).map_err(|e| refuse("creating a temporary file beside it", e))?;
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    let written = write(&mut buffered).and_then(|()| buffered.flush());
    drop(buffered);
    written.map_err(|e| refuse("writing", e))?;
    if let Some(permissions) = permissions {
        temporary.as_file().set_permissions(permissions).map_err(|e| refuse("keeping the file's mode", e))?;
    }
    temporary.as_file().sync_all().map_err(|e| refuse("writing to the disk", e))?;
    temporary.persist(&target).map_err(|e| refuse("renaming the temporary file", e.error))?;
    // the new name is durable only when its folder is; other systems cannot sync a folder
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| refuse("the file is saved, its folder not synced", e))?;
    Ok(())
}

/// The path that `path` stands for, whether there is a file or not. Linux follows 40 links, and so does this.
fn behind_links(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..40 {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.file_type().is_symlink() => {
                let link = fs::read_link(&path)?;
                path = path.parent().map_or(link.clone(), |folder| folder.join(link));
            }
            _ => return Ok(path),
        }
    }
    Err(std::io::Error::other("more than 40 links"))
}

/// A file that is removed unless it takes the target's place.
fn temporary(folder: &Path, permissions: Option<&fs::Permissions>) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".everloop-").suffix(".tmp");
    // at no moment more open than the file it replaces; a new file has what the umask leaves
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = permissions.map_or(0o666, |permissions| (permissions.mode() & 0o700) | 0o200);
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = permissions;
    builder.tempfile_in(folder)
}
