//! A conversation on the console: chat [MODEL]. Ctrl-C stops a reply; at the prompt it ends the program, as Ctrl-D does.
use std::error::Error;
use std::io::{stdin, stdout, Write};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use guanaco::{Chat, Model, Options, Role, Session, Tokenizer};

const ROOM: usize = 512; // tokens kept free for a reply

struct Conversation {
    session: Session,
    tokenizer: Tokenizer,
    chat: Chat,
    messages: Vec<(Role, String)>,
}

impl Conversation {
    fn new(model: &Model) -> guanaco::Result<Self> {
        let (session, tokenizer) = (Session::new(model, Options::new())?, model.tokenizer()?);
        Ok(Conversation { session, tokenizer, chat: Chat::new("guanaco")?, messages: Vec::new() })
    }

    /// Writes the reply while it is made. One that was stopped stays in the conversation as far as it came, so that the next
    /// question can refer to it; if it never began, the question is forgotten too.
    fn ask(&mut self, question: &str) -> Result<(), Box<dyn Error>> {
        self.messages.push((Role::USER, question.into()));
        let prompt = self.prompt()?;
        let known = self.session.reuse(&prompt)?; // earlier turns are not computed again
        let options = Options::new().max_tokens(ROOM).seed(self.messages.len() as u64).stops(self.chat.stops()?);
        let reply = self.session.generate(&prompt[known..], options.progress(|_, _| !stopped()))?;
        let (mut text, mut output) = (String::new(), stdout().lock());
        for piece in reply.take_while(|_| !stopped()) {
            let piece = piece?;
            write!(output, "{}", piece.text)?;
            output.flush()?;
            text += &piece.text;
        }
        writeln!(output)?;
        if text.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push((Role::ASSISTANT, text));
        }
        Ok(())
    }

    /// The whole conversation, less its oldest turns if a reply would not fit behind it.
    fn prompt(&mut self) -> guanaco::Result<Vec<i32>> {
        loop {
            self.chat.clear()?;
            for (role, text) in &self.messages {
                self.chat.add(*role, text)?;
            }
            let prompt = self.tokenizer.encode(&self.chat.render()?, true)?;
            if prompt.len() + ROOM <= self.session.context() || self.messages.len() == 1 {
                return Ok(prompt);
            }
            self.messages.drain(..2); // what was asked and what was answered
        }
    }
}

const WAITING: i32 = 0; // at the prompt, or loading
const REPLYING: i32 = 1;
const STOPPED: i32 = 2; // Ctrl-C was pressed during this reply
static STATE: AtomicI32 = AtomicI32::new(WAITING);

fn stopped() -> bool {
    STATE.load(SeqCst) == STOPPED
}

extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn isatty(file: i32) -> i32;
    fn _exit(status: i32) -> !;
}
const SIGINT: i32 = 2;

/// May only do what is safe at any moment: no lock, no allocation.
extern "C" fn interrupt(_: i32) {
    if STATE.compare_exchange(REPLYING, STOPPED, SeqCst, SeqCst) == Err(WAITING) {
        unsafe { _exit(130) }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    unsafe { signal(SIGINT, interrupt) };
    let terminal = unsafe { isatty(0) } == 1;
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "examples/models/tiny-guanaco".into());
    let mut conversation = Conversation::new(&Model::load(path, Options::new())?)?;
    let mut line = String::new();
    loop {
        if terminal {
            eprint!("> ");
        }
        line.clear();
        if stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            STATE.store(REPLYING, SeqCst);
            conversation.ask(line.trim())?;
            STATE.store(WAITING, SeqCst);
        }
    }
}

fn main() {
    if let Err(error) = run() {
        eprintln!("chat: {error}");
        std::process::exit(1);
    }
}
