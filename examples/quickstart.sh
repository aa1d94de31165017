#!/bin/sh
# From a fresh Debian 12 or Ubuntu 24.04 to a chat with the bundled model: installs what is missing,
# builds guanaco-chat, and runs it. Arguments become the prompt; without them there is a short
# demo conversation, then a prompt if stdin is a terminal.
#
#     sh examples/quickstart.sh [PROMPT...]
set -eu
cd "$(dirname "$0")/.."
. cmake/packages.sh

install_packages
build_preset release --target guanaco-chat

chat=build/release/bin/guanaco-chat
model=examples/models/tiny-guanaco
if [ $# -gt 0 ]; then exec $chat --model $model --prompt "$*"; fi

say 'the bundled model: 17 million parameters, real but tiny. Its grammar is better than its facts.'
printf '%s\n' 'What is the capital of France?' 'How do I make a cup of tea?' |
  $chat --model $model --seed 5 --max-tokens 120
if [ -t 0 ]; then
  printf '\n'
  say 'your turn'
  exec $chat --model $model --seed 7
fi
