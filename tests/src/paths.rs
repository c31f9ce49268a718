//! Where the programs are that the harness runs.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
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
    let how = "build it with `cargo build --release -p millrace-tests --examples`";
    let built = if workspace().join("target/release/examples/server").is_file() {
        "release/examples/server"
    } else {
        "debug/examples/server"
    };
    program("MILLRACE_EXAMPLE_SERVER", built, how)
}

/// A static site's server in Python.
pub fn site_server() -> PathBuf {
    workspace().join("tests/peers/site.py")
}

/// The static site of the tests.
pub fn site() -> PathBuf {
    workspace().join("tests/site")
}

/// The example server in Python.
pub fn python_server() -> PathBuf {
    workspace().join("tests/peers/server.py")
}

/// A program that the tests run: a client or a server of another house.
pub fn peer(name: &str) -> PathBuf {
    workspace().join("tests/peers").join(name)
}

/// What `cargo xtask setup` has installed from npm.
pub fn node_modules() -> PathBuf {
    workspace().join("target/node/node_modules")
}
