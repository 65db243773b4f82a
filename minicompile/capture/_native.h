/* What the C files of `minicompile._native` share.
 *
 * _hook.c      the module, the eval-frame hook (PEP 523), per-code policy
 * _function.c  CompiledFunction and Entry: bind the arguments, try the entries, run the program
 * _guards.c    GuardProgram: fetch and check in one pass over a list of instructions
 * _tensor.c    reading tensors without Python: layout found by probing, libtorch's symbols by dlsym
 *
 * Everything here runs under the GIL; what is per thread is `_Thread_local`.
 */
#ifndef MINICOMPILE_NATIVE_H
#define MINICOMPILE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030E0000
#error "minicompile's hook knows CPython 3.11, 3.12 and 3.13"
#endif
#ifdef Py_GIL_DISABLED
#error "minicompile's hook needs a build with the GIL"
#endif

/* --- _hook.c ---------------------------------------------------------------------------------- */

typedef enum { MODE_OFF = 0, MODE_CAPTURE = 1, MODE_DIVERT = 2 } Mode;

/* What the hook does with the frames that start in this thread. */
typedef struct {
    Mode mode;
    PyObject *handler; /* owned by the C frame that set the mode */
    int tracing;       /* how deep the thread was in trace, profile and audit functions then */
} ThreadHook;

extern _Thread_local ThreadHook mc_thread;
extern PyObject *mc_null; /* `_native.NULL`: stands for an unset slot of a frame */

void *mc_foreign_hook_off(void);
void mc_foreign_hook_on(void *taken);

/* --- _tensor.c -------------------------------------------------------------------------------- */

typedef struct TensorSpec TensorSpec; /* what a TENSOR guard expects */

bool mc_is_tensor(PyObject *object); /* a torch.Tensor or an instance of a subclass; never raises */
TensorSpec *mc_tensor_spec(PyObject *example, PyObject *sizes, PyObject *strides); /* NULL: error set */
void mc_tensor_spec_free(TensorSpec *spec);
bool mc_tensor_matches(const TensorSpec *spec, PyObject *tensor); /* never raises */
PyObject *mc_tensor_mismatch(const TensorSpec *spec,
                             PyObject *tensor); /* str: which property, expected, found */
void *mc_tensor_storage(PyObject *tensor);      /* identity of its storage, or NULL */
/* the size or stride of one dim; false if the tensor has no such dim */
bool mc_tensor_extent(PyObject *tensor, Py_ssize_t dim, bool stride, int64_t *value);

typedef struct {
    uint64_t words[12];
} Ambient; /* everything outside the arguments that changes what torch calls do in this thread */
bool mc_ambient(Ambient *out); /* false: torch's symbols can't be found, error set */
PyObject *mc_ambient_mismatch(const Ambient *expected, const Ambient *found); /* str */
PyObject *mc_ambient_dict(const Ambient *ambient);
int mc_grad_mode(void); /* 0 or 1, -1 with error set */
PyObject *mc_tensor_probe(PyObject *, PyObject *);

/* --- _guards.c -------------------------------------------------------------------------------- */

typedef struct GuardProgram GuardProgram;
extern PyTypeObject GuardProgram_Type;

/* Check all guards and fetch. `locals`: the bound parameters, in the order of co_varnames. Returns the
 * number of fetched objects (strong references are written to `fetched`, which has room for
 * mc_guard_fetch_count()), or -1 on a miss. */
Py_ssize_t mc_guard_run(GuardProgram *program, PyObject *function, PyObject **locals, Py_ssize_t nlocals,
                        PyObject **fetched, Py_ssize_t *failed);
Py_ssize_t mc_guard_fetch_count(GuardProgram *program);

/* --- _function.c ------------------------------------------------------------------------------ */

extern PyTypeObject Entry_Type;
extern PyTypeObject CompiledFunction_Type;

/* Run a frame that was caught at its start through the entries of `compiled`; like a call, NULL with an
 * error set. */
PyObject *mc_compiled_run(PyObject *compiled, PyObject *function, PyObject **locals);

#endif
