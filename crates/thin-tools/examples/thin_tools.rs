//! The tools alone, without the daemon around them: `thin_tools dump POOL.IMG`.
#![forbid(unsafe_code)]

use thinmap_thin_tools::command::{Invocation, NoHost, find};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, args)) = words.split_first() else {
        eprintln!("usage: thin_tools TOOL ARGS");
        std::process::exit(1);
    };
    let Some(tool) = find(name) else {
        eprintln!("thin_tools: there is no tool '{name}'");
        std::process::exit(1);
    };
    let program = tool.called_as;
    let host = &NoHost;
    std::process::exit((tool.run)(&Invocation {
        program,
        args,
        host,
    }));
}
