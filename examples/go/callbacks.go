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

//export goProgress
func goProgress(done, total C.uint64_t, handle C.uintptr_t) (stop C.int32_t) {
	c := cgo.Handle(handle).Value().(*callbacks)
	defer func() {
		if r := recover(); r != nil {
			c.panicked, stop = r, 1
		}
	}()
	if c.progress(uint64(done), uint64(total)) {
		return 0
	}
	return 1
}

//export goLog
func goLog(severity C.int32_t, line *C.char, length C.size_t, handle C.uintptr_t) {
	c := cgo.Handle(handle).Value().(*callbacks)
	defer func() {
		if r := recover(); r != nil {
			c.panicked = r
		}
	}()
	c.log(int(severity), C.GoStringN(line, C.int(length)))
}
