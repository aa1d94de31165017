//! A tour of the wrapper, and of what happens when something goes wrong. Every language has this program: all print the same.
use std::fmt::Display;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::channel;
use std::thread;

use guanaco::{
    estimate, inspect, step, Chat, Info, Memory, Model, Options, Result, Role, Sampler, Session, Stream, Text, Tokenizer,
};

const PROMPT: &str = "### Human: What are the benefits of regular exercise? ### Assistant:";

fn row<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
}

/// What the headers of the files tell before anything is loaded.
fn files(path: &str) -> Result<()> {
    let found = inspect(path, Options::new())?;
    println!("inspect: {} layers, {}", found.info(Info::LAYERS)?, found.texts(Text::FORMAT)?[0]);
    let need = estimate(path, Options::new().context(64))?;
    let [weights, session] = [Memory::WEIGHTS, Memory::SESSION].map(|of| need[of.0 as usize]);
    println!("estimate: {weights} bytes of weights, {session} of a session");
    Ok(())
}

fn texts(tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    let prompt = tokenizer.encode(PROMPT, true)?;
    println!("encode: {}", row(&prompt));
    println!("decode: {}", tokenizer.decode(&prompt)?);
    let bad = tokenizer.encode(&"\u{fffd}".repeat(6), true)?; // what bytes count as that are no UTF-8
    println!("bad bytes: {}", row(&bad));
    println!("half a character: [{}]", tokenizer.decode(&bad[bad.len() - 3..bad.len() - 1])?);

    let mut stream = Stream::new(Options::new().stops(["###"]))?;
    print!("stream:");
    for part in [&b"The \xffsky\xc3"[..], b"\xbc #", b"## Human"] {
        print!(" [{}]", stream.push(part)?);
    }
    println!(" [{}] stop {}", stream.finish()?, stream.stop().expect("it was there"));

    let mut chat = Chat::new("guanaco")?;
    chat.add(Role::USER, "What colour is the sky?")?;
    println!("chat: {}", chat.render()?);
    println!("stops: {}", row(chat.stops()?.iter().map(|stop| format!("[{stop}]"))));
    Ok(prompt)
}

/// Sessions by hand: feeding, scoring, going back, choosing.
fn tokens(session: &mut Session, other: &mut Session, prompt: &[i32]) -> Result<()> {
    let mut greedy = Sampler::new(Options::new().temperature(0.0))?;
    let scores = session.score(prompt, Options::new())?;
    println!("surprise: {}", row(scores[1..].iter().map(|score| format!("{:.3}", -score))));
    println!("next: {}", greedy.sample(session.logits())?);
    session.rewind(9)?;
    println!("rewind: {} of {} holds {}", session.position(), session.context(), row(session.tokens()));
    println!("reuse: {}", session.reuse(&[&prompt[..4], prompt].concat())?);
    session.feed(&prompt[4..], Options::new())?;
    println!("feed: {} then {}", session.position(), greedy.sample(session.logits())?);
    session.rewind(4)?;
    guanaco::feed([(&mut *session, &prompt[4..]), (&mut *other, prompt)], Options::new())?;
    print!("feed many:");
    for one in [&*session, other] {
        print!(" {} then {}", one.position(), greedy.sample(one.logits())?);
    }
    println!();

    let mut seeded = Sampler::new(Options::new().seed(7).temperature(1.0))?;
    let drawn: Result<Vec<_>> = (0..8).map(|_| seeded.sample(session.logits())).collect();
    println!("sampler: {}", row(drawn?));
    let mut copy = seeded.try_clone()?;
    println!("its copy: {} {}", seeded.sample(session.logits())?, copy.sample(session.logits())?);
    let mut penal = Sampler::new(Options::new().temperature(0.0).repetition_penalty(100.0))?;
    penal.accept(&[greedy.sample(session.logits())?])?;
    println!("accept: {}", penal.sample(session.logits())?);
    Ok(())
}

fn replies(session: &mut Session, other: &mut Session, prompt: &[i32]) -> Result<()> {
    session.rewind(0)?;
    other.rewind(0)?;
    let mut reply = session.generate(prompt, Options::new().temperature(0.0).max_tokens(8))?;
    let pieces = reply.by_ref().collect::<Result<Vec<_>>>()?;
    println!("reply: {} finish {}", row(pieces.iter().filter_map(|piece| piece.token)), reply.finish().0);
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    println!("its text: {text}, {:.3}", pieces.iter().map(|piece| f64::from(piece.logprob)).sum::<f64>());
    drop(reply);

    session.rewind(0)?;
    let sampler = Sampler::new(Options::new().seed(1))?;
    let mut one = session.generate(PROMPT, Options::new().seed(1))?;
    let mut two = other.generate(PROMPT, Options::new().sampler(&sampler))?;
    step([&mut one, &mut two])?;
    let [first, second] = [&mut one, &mut two].map(|reply| reply.next().expect("a piece"));
    println!("step: [{}] [{}] {} {}", first?.text, second?.text, one.tokens(), two.tokens());
    Ok(())
}

fn failures(path: &str, session: &mut Session, prompt: &[i32]) -> Result<()> {
    session.rewind(0)?;
    for result in [
        Model::load("no/such/folder", Options::new()).map(drop),
        session.feed(&[0; 80], Options::new()),
        Sampler::new(Options::new().top_p(2.0)).map(drop),
    ] {
        let error = result.expect_err("it is wrong");
        println!("error: {} {error}", error.status.0);
    }
    let error = session.generate(prompt, Options::new().max_tokens(usize::MAX)).map(drop).expect_err("it is too large");
    assert!(error.message.contains(&i64::MAX.to_string()), "{error}");

    std::panic::set_hook(Box::new(|_| {})); // these panics are meant
    let panic =
        |call: &mut dyn FnMut() -> Result<()>| *catch_unwind(AssertUnwindSafe(call)).unwrap_err().downcast::<&str>().unwrap();
    let thrown = panic(&mut || session.feed(prompt, Options::new().progress(|_, _| panic!("enough"))));
    println!("thrown by progress: {thrown}, position {}", session.position());
    let thrown = panic(&mut || Model::load(path, Options::new().log(|_, _| panic!("enough"))).map(drop));
    println!("thrown by log: {thrown}, position {}", session.position());
    drop(std::panic::take_hook());
    let given_up = session.feed(prompt, Options::new().progress(|_, _| false)).expect_err("it is given up");
    println!("given up: status {}, position {}", given_up.status.0, session.position());

    // In the middle of the prompt; by another thread, for this one is inside the call.
    let ((ask, asked), (tell, told)) = (channel(), channel());
    let options = Options::new().progress(move |_, _| ask.send(()).is_ok() && told.recv().is_ok());
    let mut reply = session.generate(prompt, options)?;
    let cancel = reply.cancel_handle();
    thread::spawn(move || {
        for () in asked {
            cancel.cancel();
            tell.send(()).expect("it waits");
        }
    });
    println!("cancelled: [{}] finish {}", reply.rest()?, reply.finish().0);
    drop(reply);

    drop(session.generate(prompt, Options::new())?.next()); // and forgotten
    session.rewind(0)?;
    println!("forgotten: position {}", session.position());
    Ok(())
}

fn run() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "examples/models/tiny-guanaco".into());
    println!("version: {}", guanaco::version());
    files(&path)?;
    let model = Model::load(&path, Options::new())?;
    let prompt = texts(&model.tokenizer()?)?;
    let mut session = Session::new(&model, Options::new().context(64))?;
    let mut other = Session::new(&model, Options::new().context(64))?;
    drop(model);
    println!("model closed, sessions go on");
    tokens(&mut session, &mut other, &prompt)?;
    replies(&mut session, &mut other, &prompt)?;
    failures(&path, &mut session, &prompt)?;
    drop(other);
    println!("closed: refused"); // by the compiler
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("check: {error}");
        std::process::exit(1);
    }
}
