//! What the shim costs calls that are not its business, in nanoseconds.
//!
//!     cargo build --release -p thinmap-shim
//!     cargo run --release -p thinmap-shim --example cost [SHIM]
//!
//! Runs itself by turns with and without the shim preloaded and prints each call's median of both and their difference. Time of the
//! processor is counted, but the machine had better have nothing else to do.

use std::ffi::CStr;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;

use libc::{AT_FDCWD, O_CLOEXEC, O_RDONLY, c_int};

const TURNS: usize = 15;
/// So many that a turn of a call takes some ten milliseconds.
const CALLS: u32 = 50_000;
/// Set in the runs that measure.
const MEASURE: &str = "SHIM_COST_MEASURE";

/// One call, on the two ends of a pipe and on /dev/null.
type Call = fn(&Descriptors);

struct Descriptors {
    pipe: c_int,
    null: c_int,
}

const NULL: &CStr = c"/dev/null";
const MISSING: &CStr = c"/usr/share/nothing-of-this-name";
const LONG: &CStr = c"/usr/share/doc/libc6/copyright";

const CASES: &[(&str, Call)] = &[
    ("ioctl FIONREAD on a pipe", |at| {
        let mut bytes: c_int = 0;
        // SAFETY: FIONREAD writes an integer.
        unsafe { libc::ioctl(at.pipe, libc::FIONREAD, &raw mut bytes) };
        black_box(bytes);
    }),
    ("ioctl TCGETS on /dev/null", |at| {
        let mut termios = std::mem::MaybeUninit::<libc::termios>::uninit();
        // SAFETY: TCGETS writes less than a termios, if anything.
        unsafe { libc::ioctl(at.null, libc::TCGETS, termios.as_mut_ptr()) };
    }),
    ("open and close /dev/null", |_| open_and_close(NULL)),
    ("open and close a longer path", |_| open_and_close(LONG)),
    ("open a missing path", |_| open_and_close(MISSING)),
    ("openat and close /dev/null", |_| {
        // SAFETY: a NUL-terminated path; the descriptor is nobody else's.
        unsafe {
            let fd = libc::openat(AT_FDCWD, NULL.as_ptr(), O_RDONLY | O_CLOEXEC);
            libc::close(fd);
        }
    }),
    ("stat /dev/null", |_| stat(NULL)),
    ("stat a missing path", |_| stat(MISSING)),
    ("access a missing path", |_| {
        // SAFETY: a NUL-terminated path.
        unsafe { libc::access(MISSING.as_ptr(), libc::F_OK) };
    }),
    ("unlink a missing path", |_| {
        // SAFETY: as above.
        unsafe { libc::unlink(MISSING.as_ptr()) };
    }),
    ("getenv", |_| {
        // SAFETY: nobody changes the environment here.
        black_box(unsafe { libc::getenv(c"HOME".as_ptr()) });
    }),
];

fn open_and_close(path: &CStr) {
    // SAFETY: a NUL-terminated path; the descriptor is nobody else's.
    unsafe {
        let fd = libc::open(path.as_ptr(), O_RDONLY | O_CLOEXEC);
        if fd >= 0 {
            libc::close(fd);
        }
    }
}

fn stat(path: &CStr) {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a NUL-terminated path, and room for the answer.
    unsafe { libc::stat(path.as_ptr(), stat.as_mut_ptr()) };
}

fn main() {
    if std::env::var_os(MEASURE).is_some() {
        return measure();
    }
    let shim = std::env::args_os()
        .nth(1)
        .map_or_else(beside, PathBuf::from);
    assert!(shim.is_file(), "{}: build it first", shim.display());
    let mut without = vec![Vec::new(); CASES.len()];
    let mut with = without.clone();
    for _ in 0..TURNS {
        run(None, &mut without);
        run(Some(&shim), &mut with);
    }
    println!(
        "{:32} {:>9} {:>9} {:>7}",
        "ns per call", "without", "with", "more"
    );
    for (at, (name, _)) in CASES.iter().enumerate() {
        let (without, with) = (median(&mut without[at]), median(&mut with[at]));
        println!("{name:32} {without:9.1} {with:9.1} {:7.1}", with - without);
    }
}

/// The shim that was built with this program.
fn beside() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    own.with_file_name("../libthinmap_dm.so")
}

/// Adds a turn's figures, one for each case.
fn run(shim: Option<&PathBuf>, figures: &mut [Vec<f64>]) {
    let own = std::env::current_exe().expect("own path");
    let mut command = Command::new(own);
    command.env(MEASURE, "1").env_remove("LD_PRELOAD");
    if let Some(shim) = shim {
        command.env("LD_PRELOAD", shim);
    }
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines = text.lines();
    for figure in figures {
        let line = lines.next().expect("a figure");
        figure.push(line.parse().expect("a number"));
    }
}

fn measure() {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors are written; the path is NUL-terminated.
    let null = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        libc::open(NULL.as_ptr(), libc::O_RDWR)
    };
    let at = Descriptors {
        pipe: pipe[0],
        null,
    };
    for (_, call) in CASES {
        (0..CALLS / 10).for_each(|_| call(&at));
        let start = processor_ns();
        (0..CALLS).for_each(|_| call(&at));
        println!("{}", (processor_ns() - start) / f64::from(CALLS));
    }
}

/// What this thread has had of a processor: others may be busy too.
fn processor_ns() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
