package guanaco

// #include <stddef.h>
// #include <stdint.h>
import "C"

import "runtime/cgo"

// callbacks are Go functions that the library calls through a handle; no panic may go through C.
type callbacks struct {
	progress func(done, total uint64) bool
	log      func(severity int, line string)
	panicked any
}

// run calls back, unless a panic waits already; false: there is one, or the callback gives up.
func (c *callbacks) run(callback func() bool) (goOn bool) {
	if c.panicked != nil {
		return false
	}
	defer func() {
		if r := recover(); r != nil {
			c.panicked, goOn = r, false
		}
	}()
	return callback()
}

//export goProgress
func goProgress(done, total C.uint64_t, handle C.uintptr_t) C.int32_t {
	c := cgo.Handle(handle).Value().(*callbacks)
	if c.run(func() bool { return c.progress == nil || c.progress(uint64(done), uint64(total)) }) {
		return 0
	}
	return 1
}

//export goLog
func goLog(severity C.int32_t, line *C.char, length C.size_t, handle C.uintptr_t) {
	c := cgo.Handle(handle).Value().(*callbacks)
	c.run(func() bool { c.log(int(severity), C.GoStringN(line, C.int(length))); return true })
}
