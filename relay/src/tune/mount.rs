//! The tree of files in front of the settings, by FUSE.
//!
//! A value is one line, written at once: `write` takes it or refuses it, and whoever writes is told. A file
//! is opened for each look, and shows what was in force then, however slowly it is read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::mount::{UnmountFlags, unmount};

use super::tree::{Node, NodeId, Tree};
use super::{Refusal, Source};

/// The kernel asks each time: a value may have changed.
const NO_TIME: Duration = Duration::ZERO;
const BLOCK: u32 = 512;
/// Mounts that may lie on top of each other, of relays that were killed.
const MOST_LAYERS: u32 = 64;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Only root mounts.
    #[error("the relay does not run as root")]
    NotRoot,
    /// Something failed.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// The tree while it is there. Taken away when this is dropped.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mounted {
    /// Puts a tree into a folder, which is made. One that a killed relay has left there is taken away.
    pub fn new(at: &Path, source: Arc<dyn Source>) -> Result<Self, MountError> {
        if !rustix::process::geteuid().is_root() {
            return Err(MountError::NotRoot);
        }
        let failed = |what: &str| {
            let what = format!("{what} {}", at.display());
            |source| MountError::Io { what, source }
        };
        clear(at).map_err(failed("take away what is mounted at"))?;
        DirBuilder::new().recursive(true).mode(0o700).create(at).map_err(failed("create"))?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("millrace".to_owned()),
            MountOption::Subtype("millrace".to_owned()),
            // With the other one, or even root is refused whose group is another, and no mode is checked.
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::All;
        let session = Session::new(Files::new(source), at, &config)
            .and_then(Session::spawn)
            .map_err(failed("mount (FUSE) at"))?;
        Ok(Self { at: at.to_owned(), session: Some(session) })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // First: whoever has a file open, or is in a folder, would keep it from being taken away.
        if let Err(error) = clear(&self.at) {
            tracing::warn!(%error, at = %self.at.display(), "the tree of settings stays mounted");
        }
        // It unmounts nothing more, and its thread ends with the last of the open files.
        drop(self.session.take());
        let _ = std::fs::remove_dir(&self.at);
    }
}

/// Takes away whatever is mounted at a place, and the folder if it is empty then. Nothing of it is asked:
/// the process that would answer may be dead, or stopped.
pub fn clear(at: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    for _ in 0..MOST_LAYERS {
        match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or nothing is there.
            Err(Errno::INVAL | Errno::NOENT) => {
                let _ = std::fs::remove_dir(at);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("more than {MOST_LAYERS} mounts lie on top of each other")))
}

/// What has been opened, and what was refused.
#[derive(Debug, Default)]
struct State {
    /// What each open file shows.
    open: HashMap<u64, Vec<u8>>,
    next_handle: u64,
    /// Why the last write in a folder was refused.
    last_errors: HashMap<NodeId, String>,
}

/// The files. One thread serves them.
struct Files {
    tree: Tree,
    source: Arc<dyn Source>,
    state: Mutex<State>,
    since: SystemTime,
    owner: (u32, u32),
}

fn number(id: NodeId) -> INodeNo {
    // The first is 1 (`FUSE_ROOT_ID`).
    INodeNo(id.0 as u64 + 1)
}

fn node_id(ino: INodeNo) -> NodeId {
    NodeId(usize::try_from(ino.0).map_or(usize::MAX, |number| number.wrapping_sub(1)))
}

fn code(refusal: &Refusal) -> Errno {
    match refusal {
        Refusal::Unknown { .. } => Errno::ENOENT,
        Refusal::Invalid { .. } => Errno::EINVAL,
        Refusal::OutOfRange { .. } => Errno::ERANGE,
        Refusal::Fixed { .. } => Errno::EPERM,
        Refusal::Busy { .. } => Errno::EBUSY,
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

impl Files {
    fn new(source: Arc<dyn Source>) -> Self {
        let values = source.values();
        let settings = values.entries().iter();
        let tree = Tree::new(settings.map(|entry| (entry.path.as_str(), entry.fixed.is_none())));
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { tree, source, state: Mutex::default(), since: SystemTime::now(), owner }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a file shows now; none if it is no file.
    fn contents(&self, id: NodeId) -> Option<Vec<u8>> {
        match self.tree.node(id)? {
            Node::Folder(_) => None,
            Node::Setting { path, .. } => {
                self.source.values().entry(path).ok().map(|entry| line(&entry.text))
            }
            Node::LastError => {
                let errors = &self.state().last_errors;
                Some(errors.get(&self.tree.parent(id)).map_or_else(Vec::new, |why| line(why)))
            }
        }
    }

    fn attributes(&self, id: NodeId, handle: Option<FileHandle>) -> Option<FileAttr> {
        let (kind, perm, nlink) = match self.tree.node(id)? {
            Node::Folder(_) => (FileType::Directory, 0o755, 2),
            Node::Setting { is_live: true, .. } => (FileType::RegularFile, 0o644, 1),
            Node::Setting { is_live: false, .. } | Node::LastError => {
                (FileType::RegularFile, 0o444, 1)
            }
        };
        let shown = handle.and_then(|handle| self.state().open.get(&handle.0).map(Vec::len));
        let size = shown.or_else(|| self.contents(id).map(|text| text.len())).unwrap_or_default();
        Some(FileAttr {
            ino: number(id),
            size: size as u64,
            blocks: (size as u64).div_ceil(u64::from(BLOCK)),
            atime: UNIX_EPOCH,
            mtime: self.since,
            ctime: self.since,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn set(&self, id: NodeId, bytes: &[u8]) -> Result<(), Errno> {
        let Some(Node::Setting { path, .. }) = self.tree.node(id) else { return Err(Errno::EPERM) };
        let set = match str::from_utf8(bytes) {
            Ok(text) => self.source.set(path, text),
            Err(_) => Err(Refusal::Invalid {
                path: path.clone(),
                problem: "the value is not UTF-8".to_owned(),
            }),
        };
        set.map(drop).map_err(|refusal| self.refused(id, &refusal))
    }

    /// Keeps the reason where it can be read.
    fn refused(&self, id: NodeId, refusal: &Refusal) -> Errno {
        tracing::warn!("a setting was not changed: {refusal}");
        self.state().last_errors.insert(self.tree.parent(id), refusal.to_string());
        code(refusal)
    }

    fn may_open(&self, id: NodeId, writes: bool) -> Result<(), Errno> {
        match self.tree.node(id).ok_or(Errno::ENOENT)? {
            Node::Folder(_) => Err(Errno::EISDIR),
            Node::LastError if writes => Err(Errno::EPERM),
            Node::Setting { path, is_live: false } if writes => {
                // It says how the setting is changed instead.
                match self.source.set(path, "") {
                    Ok(_) => Ok(()),
                    Err(refusal) => Err(self.refused(id, &refusal)),
                }
            }
            Node::Setting { .. } | Node::LastError => Ok(()),
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = name.to_str().and_then(|name| self.tree.child(node_id(parent), name));
        match found.and_then(|id| self.attributes(id, None)) {
            Some(attributes) => reply.entry(&NO_TIME, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(node_id(ino), handle) {
            Some(attributes) => reply.attr(&NO_TIME, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// A shell truncates a file before it writes. No size is a value, and times are nobody's.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes_owner = mode.is_some() || uid.is_some() || gid.is_some();
        match self.attributes(node_id(ino), handle) {
            Some(_) if changes_owner => reply.error(Errno::EPERM),
            Some(attributes) => reply.attr(&NO_TIME, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let id = node_id(ino);
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        if let Err(error) = self.may_open(id, writes) {
            return reply.error(error);
        }
        let contents = self.contents(id).unwrap_or_default();
        let mut state = self.state();
        state.next_handle += 1;
        let handle = state.next_handle;
        state.open.insert(handle, contents);
        drop(state);
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        let shown = state.open.get(&handle.0).map_or(&[][..], Vec::as_slice);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(shown.len());
        let to = from.saturating_add(size as usize).min(shown.len());
        reply.data(&shown[from..to]);
    }

    /// One write is one value, wherever it is written: `>>` comes at the end.
    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.set(node_id(ino), data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }

    /// The first one comes before the write.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.state().open.remove(&handle.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let id = node_id(ino);
        let Some(Node::Folder(children)) = self.tree.node(id) else {
            return reply.error(Errno::ENOTDIR);
        };
        let itself = [(".", id), ("..", self.tree.parent(id))];
        let all = itself.into_iter().chain(children.iter().map(|(name, id)| (name.as_str(), *id)));
        for (next, (name, id)) in (1..).zip(all).skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            let kind = match self.tree.node(id) {
                Some(Node::Folder(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(number(id), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn create(
        &self,
        _: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        _: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOTSUP);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOTSUP);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::ROOT;
    use super::*;

    #[test]
    fn numbers_lead_back_to_what_they_are_of() {
        for id in [ROOT, NodeId(1), NodeId(4711)] {
            assert_eq!(node_id(number(id)), id);
        }
        assert_eq!(number(ROOT), INodeNo::ROOT);
    }
}
