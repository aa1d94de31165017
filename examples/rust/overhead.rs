//! What the binding itself costs: the time of next() alone, once step() has computed the token.
use std::time::Instant;

use guanaco::{step, Model, Options, Result, Session};

fn run() -> Result<()> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "examples/models/tiny-guanaco".into());
    let model = Model::load(path, Options::new())?;
    let mut session = Session::new(&model, Options::new().context(600))?;
    let options = Options::new().stop_at_end_of_text(false).max_tokens(400).temperature(0.0);
    let mut reply = session.generate("Once upon a time", options)?;

    let mut times = Vec::new();
    loop {
        step([&mut reply])?;
        let start = Instant::now();
        let piece = reply.next();
        let took = start.elapsed();
        if piece.transpose()?.is_none() {
            break;
        }
        times.push(took);
    }
    times.sort();
    println!("Rust: {:.2} us a token", 1e6 * times[times.len() / 2].as_secs_f64());
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("overhead: {error}");
        std::process::exit(1);
    }
}
