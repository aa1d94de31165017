/* A protobuf that is not sentencepiece's own: whoever takes it for that has met the wrong library.
 * Plays what a host that is linked with libprotobuf has in its global scope. */
#include <unistd.h>

#define FOREIGN(name) \
  void name(void);    \
  void name(void) { _exit(42); }
FOREIGN(_ZN6google8protobuf8internal12ExtensionSetC1EPNS0_5ArenaE)
FOREIGN(_ZN6google8protobuf8internal12ExtensionSetC2EPNS0_5ArenaE)
FOREIGN(_ZN6google8protobuf8internal12ExtensionSetD1Ev)
FOREIGN(_ZN6google8protobuf8internal13VerifyVersionEiiPKc)
