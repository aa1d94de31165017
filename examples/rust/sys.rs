//! The declarations of <guanaco/c.h>, in its order; its comments hold here. Text is u8, as UTF-8 is in Rust. The numbers are
//! in guanaco.rs, with a type for each kind.
#![allow(non_camel_case_types)]
use std::os::raw::{c_char, c_void};

/// The N of libguanaco.so.N that these declarations are of.
pub const ABI: i32 = 1;

macro_rules! opaque {
    ($($name:ident)*) => { $(#[repr(C)] pub struct $name { _private: [u8; 0] })* };
}
opaque! { guanaco_options guanaco_model guanaco_inspection guanaco_tokenizer guanaco_chat guanaco_stream guanaco_sampler
          guanaco_session guanaco_generation }

#[repr(C)]
pub struct guanaco_error {
    pub status: i32,
    pub message: [c_char; 508],
}

pub type guanaco_progress_fn = unsafe extern "C" fn(done: u64, total: u64, user_data: *mut c_void) -> i32;
pub type guanaco_log_fn = unsafe extern "C" fn(severity: i32, line: *const u8, length: usize, user_data: *mut c_void);

#[rustfmt::skip]  // a parameter a line would be three times as long
extern "C" {
    pub fn guanaco_abi() -> i32;
    pub fn guanaco_version() -> *const c_char;
    pub fn guanaco_status_name(status: i32) -> *const c_char;
    pub fn guanaco_options_new() -> *mut guanaco_options;
    pub fn guanaco_options_free(options: *mut guanaco_options);
    pub fn guanaco_options_set_int(
        options: *mut guanaco_options, option: i32, value: i64, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_options_set_float(
        options: *mut guanaco_options, option: i32, value: f64, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_options_add_stop(
        options: *mut guanaco_options, text: *const u8, length: usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_options_on_progress(
        options: *mut guanaco_options, callback: Option<guanaco_progress_fn>, user_data: *mut c_void,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_options_on_log(
        options: *mut guanaco_options, callback: Option<guanaco_log_fn>, user_data: *mut c_void,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_model_load(
        path: *const u8, length: usize, options: *const guanaco_options, out: *mut *mut guanaco_model,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_model_free(model: *mut guanaco_model);
    pub fn guanaco_model_info(
        model: *const guanaco_model, info: i32, value: *mut i64, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_model_text(
        model: *const guanaco_model, kind: i32, index: usize, text: *mut *const u8, length: *mut usize,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_model_tokenizer(
        model: *const guanaco_model, out: *mut *mut guanaco_tokenizer, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_inspect(
        path: *const u8, length: usize, options: *const guanaco_options, out: *mut *mut guanaco_inspection,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_inspection_free(inspection: *mut guanaco_inspection);
    pub fn guanaco_inspection_info(
        inspection: *const guanaco_inspection, info: i32, value: *mut i64, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_inspection_text(
        inspection: *const guanaco_inspection, kind: i32, index: usize, text: *mut *const u8, length: *mut usize,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_estimate(
        path: *const u8, length: usize, options: *const guanaco_options, bytes: *mut u64, count: usize,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_tokenizer_load(
        file: *const u8, length: usize, out: *mut *mut guanaco_tokenizer, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_tokenizer_free(tokenizer: *mut guanaco_tokenizer);
    pub fn guanaco_tokenizer_size(tokenizer: *const guanaco_tokenizer) -> i32;
    pub fn guanaco_tokenizer_bos(tokenizer: *const guanaco_tokenizer) -> i32;
    pub fn guanaco_tokenizer_eos(tokenizer: *const guanaco_tokenizer) -> i32;
    pub fn guanaco_tokenizer_encode(
        tokenizer: *const guanaco_tokenizer, text: *const u8, length: usize, begin: i32, tokens: *mut i32,
        capacity: usize, needed: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_tokenizer_encode_continuation(
        tokenizer: *const guanaco_tokenizer, text: *const u8, length: usize, tokens: *mut i32, capacity: usize,
        needed: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_tokenizer_decode(
        tokenizer: *const guanaco_tokenizer, tokens: *const i32, count: usize, text: *mut u8, capacity: usize,
        needed: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_tokenizer_piece(
        tokenizer: *const guanaco_tokenizer, token: i32, bytes: *mut *const u8, length: *mut usize,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_chat_name(index: usize, text: *mut *const u8, length: *mut usize) -> i32;
    pub fn guanaco_chat_new(
        name: *const u8, length: usize, out: *mut *mut guanaco_chat, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_chat_free(chat: *mut guanaco_chat);
    pub fn guanaco_chat_add(
        chat: *mut guanaco_chat, role: i32, text: *const u8, length: usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_chat_clear(chat: *mut guanaco_chat, error: *mut guanaco_error) -> i32;
    pub fn guanaco_chat_render(
        chat: *mut guanaco_chat, text: *mut *const u8, length: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_chat_stop(
        chat: *const guanaco_chat, index: usize, text: *mut *const u8, length: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_stream_new(
        options: *const guanaco_options, out: *mut *mut guanaco_stream, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_stream_free(stream: *mut guanaco_stream);
    pub fn guanaco_stream_push(
        stream: *mut guanaco_stream, bytes: *const u8, count: usize, text: *mut *const u8, length: *mut usize,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_stream_finish(
        stream: *mut guanaco_stream, text: *mut *const u8, length: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_stream_stop(stream: *const guanaco_stream) -> i64;
    pub fn guanaco_sampler_new(
        options: *const guanaco_options, out: *mut *mut guanaco_sampler, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_sampler_copy(
        sampler: *const guanaco_sampler, out: *mut *mut guanaco_sampler, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_sampler_free(sampler: *mut guanaco_sampler);
    pub fn guanaco_sampler_sample(
        sampler: *mut guanaco_sampler, logits: *const f32, count: usize, token: *mut i32, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_sampler_accept(
        sampler: *mut guanaco_sampler, tokens: *const i32, count: usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_session_new(
        model: *const guanaco_model, options: *const guanaco_options, out: *mut *mut guanaco_session,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_session_free(session: *mut guanaco_session);
    pub fn guanaco_session_feed(
        session: *mut guanaco_session, tokens: *const i32, count: usize, options: *const guanaco_options,
        error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_session_feed_many(
        sessions: *const *mut guanaco_session, tokens: *const *const i32, counts: *const usize, count: usize,
        options: *const guanaco_options, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_session_score(
        session: *mut guanaco_session, tokens: *const i32, count: usize, logprobs: *mut f32,
        options: *const guanaco_options, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_session_logits(session: *const guanaco_session, count: *mut usize) -> *const f32;
    pub fn guanaco_session_tokens(session: *const guanaco_session, count: *mut usize) -> *const i32;
    pub fn guanaco_session_position(session: *const guanaco_session) -> i64;
    pub fn guanaco_session_context(session: *const guanaco_session) -> i64;
    pub fn guanaco_session_rewind(session: *mut guanaco_session, position: i64, error: *mut guanaco_error) -> i32;
    pub fn guanaco_session_reuse(
        session: *mut guanaco_session, tokens: *const i32, count: usize, known: *mut usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_generate(
        session: *mut guanaco_session, sampler: *const guanaco_sampler, prompt: *const u8, length: usize,
        options: *const guanaco_options, out: *mut *mut guanaco_generation, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_generate_tokens(
        session: *mut guanaco_session, sampler: *const guanaco_sampler, tokens: *const i32, count: usize,
        options: *const guanaco_options, out: *mut *mut guanaco_generation, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_generation_free(generation: *mut guanaco_generation);
    pub fn guanaco_generation_next(
        generation: *mut guanaco_generation, text: *mut *const u8, length: *mut usize, token: *mut i32,
        logprob: *mut f32, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_generation_step(
        generations: *const *mut guanaco_generation, count: usize, error: *mut guanaco_error
    ) -> i32;
    pub fn guanaco_generation_finish(generation: *const guanaco_generation) -> i32;
    pub fn guanaco_generation_tokens(generation: *const guanaco_generation) -> i64;
    pub fn guanaco_generation_cancel(generation: *mut guanaco_generation);
}
