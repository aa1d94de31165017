#pragma once

/// \file
/// libguanaco: LLaMA checkpoints as they were published (GPTQ 2/3/4/8 bit, fp16, bf16, fp32) inside
/// your program.
///
///     using namespace guanaco;
///     auto model   = Model::load("guanaco-13B-GPTQ");
///     auto session = Session(model, {.context = 2048});
///     auto& chat   = ChatTemplate::named("guanaco");
///     auto prompt  = chat.render({{{Role::user, "Name three camelids."}}});
///     auto reply   = session.generate(prompt, Sampler({.seed = 7}), {.stops = {"### Human:"}});
///     while (auto piece = reply.next()) std::cout << piece->text << std::flush;
///
/// Read the headers in this order; stop at any of them with a working program.

#include <guanaco/chat.h>       // IWYU pragma: export
#include <guanaco/error.h>      // IWYU pragma: export
#include <guanaco/model.h>      // IWYU pragma: export
#include <guanaco/sampler.h>    // IWYU pragma: export
#include <guanaco/session.h>    // IWYU pragma: export
#include <guanaco/stream.h>     // IWYU pragma: export
#include <guanaco/tokenizer.h>  // IWYU pragma: export
#include <guanaco/version.h>    // IWYU pragma: export
