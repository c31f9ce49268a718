//! Where the programs are that the harness runs.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The folder of this package, whose data the functions below name.
const HARNESS: &str = env!("CARGO_MANIFEST_DIR");

/// The folder of the whole repository.
pub fn workspace() -> &'static Path {
    Path::new(HARNESS).ancestors().nth(2).expect("the package lies in the workspace")
}

fn program(variable: &str, default: &str, how: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .map_or_else(|| workspace().join("target").join(default), PathBuf::from);
    ensure!(path.is_file(), "{} does not exist: {how}, or set {variable}", path.display());
    Ok(std::path::absolute(path)?)
}

/// The `relay` program: `MILLRACE_RELAY`, or the release build.
pub fn relay() -> Result<PathBuf> {
    program("MILLRACE_RELAY", "release/relay", "build it with `cargo build --release`")
}

/// The `xtask` program: `MILLRACE_XTASK`, or a build of it.
pub fn xtask() -> Result<PathBuf> {
    let built = if workspace().join("target/release/xtask").is_file() {
        "release/xtask"
    } else {
        "debug/xtask"
    };
    program("MILLRACE_XTASK", built, "build it with `cargo build -p xtask`")
}

/// The example server in Rust.
pub fn example_server() -> Result<PathBuf> {
    let how = "build it with `cargo build --release -p millrace-e2e --examples`";
    let built = if workspace().join("target/release/examples/server").is_file() {
        "release/examples/server"
    } else {
        "debug/examples/server"
    };
    program("MILLRACE_EXAMPLE_SERVER", built, how)
}

/// A static site's server in Python.
pub fn site_server() -> PathBuf {
    peer("site.py")
}

/// The static site of the tests.
pub fn site() -> PathBuf {
    Path::new(HARNESS).join("site")
}

/// The example server in Python.
pub fn python_server() -> PathBuf {
    peer("server.py")
}

/// A program that the tests run: a client or a server of another house.
pub fn peer(name: &str) -> PathBuf {
    Path::new(HARNESS).join("peers").join(name)
}

/// What `cargo xtask setup` has installed from npm.
pub fn node_modules() -> PathBuf {
    workspace().join("target/node/node_modules")
}
