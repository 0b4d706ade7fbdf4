//! A unix socket as a listener, for clients on the same machine: a file that is made here, and taken away in the end.

use std::{
    io,
    os::unix::{fs::FileTypeExt, net},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// A bound socket that does not serve yet. Dropping it takes the file away.
pub struct UnixBound {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixBound {
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::from_std(listen(path)?)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(socket, _)| socket)
    }
}

impl Drop for UnixBound {
    fn drop(&mut self) {
        // One that is gone already is as it should be.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The path of `unix:path` or `unix://path`.
pub fn path_of(address: &str) -> Option<&Path> {
    let path = address.strip_prefix("unix:")?;
    Some(Path::new(path.strip_prefix("//").unwrap_or(path)))
}

/// A file that an earlier process left behind is replaced; one that somebody listens on is not, nor one that is no
/// socket.
pub fn listen(path: &Path) -> io::Result<net::UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && net::UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    let listener = net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
