//! dmsetup's words, order and exit codes, over a real control socket to a device mapper in memory. The expected texts are
//! those of Debian 12's dmsetup, run against the same device mapper.

mod devices;
mod fake;
mod listings;
mod usage;
mod words;

/// Serves a fake at the directory that THINMAP_FAKE_DIR names, until the file `stop` appears there: for comparing with
/// another dmsetup by hand.
#[test]
#[ignore = "a tool, not a test"]
fn serve_fake() {
    let Some(dir) = std::env::var_os("THINMAP_FAKE_DIR").map(std::path::PathBuf::from) else {
        return;
    };
    let server = thinmap_control::Server::bind(&dir.join("control.sock")).unwrap();
    let fake = std::sync::Arc::new(fake::Fake::default());
    let _running = server.start(fake).unwrap();
    while !dir.join("stop").exists() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
