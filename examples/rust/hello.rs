//! Asks one question and prints the answer while it is being written.
use std::error::Error;
use std::io::Write;

use guanaco::{Chat, Model, Options, Role, Session};

fn run() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "examples/models/tiny-guanaco".into());
    let model = Model::load(path, Options::new())?;
    let mut session = Session::new(&model, Options::new())?;

    let mut chat = Chat::new("guanaco")?;
    chat.add(Role::USER, "What colour is the sky?")?;
    let reply = session.generate(&chat.render()?, Options::new().seed(7).stops(chat.stops()?))?;

    let mut output = std::io::stdout().lock();
    for piece in reply {
        write!(output, "{}", piece?.text)?;
        output.flush()?;
    }
    Ok(writeln!(output)?)
}

fn main() {
    if let Err(error) = run() {
        eprintln!("hello: {error}");
        std::process::exit(1);
    }
}
