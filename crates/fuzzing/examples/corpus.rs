//! The fuzz targets' packed corpora: `corpus targets`, `corpus unpack NAME DIR` (its seeds too), `corpus pack NAME DIR`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thinmap_fuzzing::{ALL, by_name, corpus};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["targets"] => {
            ALL.iter().for_each(|target| println!("{}", target.name));
            Ok(())
        }
        ["unpack", name, dir] => unpack(name, Path::new(dir)),
        ["pack", name, dir] => {
            corpus::read_directory(Path::new(dir)).and_then(|all| corpus::write(&packed(name), all))
        }
        _ => {
            eprintln!("corpus targets | unpack NAME DIR | pack NAME DIR");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corpus: {error}");
            ExitCode::FAILURE
        }
    }
}

fn packed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fuzz/corpus/{name}.pack"))
}

fn unpack(name: &str, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let kept = corpus::read(&packed(name))?.into_iter();
    for (number, input) in kept.chain((by_name(name).seeds)()).enumerate() {
        std::fs::write(dir.join(format!("kept-{number:05}")), input)?;
    }
    Ok(())
}
