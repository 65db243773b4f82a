/* Shared by _launch.c (the call) and _externs.c (library kernels): libtorch's C interface, and a graph's
   program. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>

typedef void* Handle;                                     /* AtenTensorHandle */
typedef uint64_t Stable;                                  /* StableIValue */
#define HANDLE(object) ((Handle)((char*)(object) + sizeof(PyObject)))

/* Functions of libtorch_cpu and libtorch_python, found at run time. All return 0 for success unless they
   return a value. */
typedef struct {
  int ready;
  PyTypeObject *tensor_type, *tensor_base;
  int32_t dtype_uint8;
  uint64_t abi;
  int (*data_ptr)(Handle, void**);
  int (*get_dtype)(Handle, int32_t*);
  int (*get_dim)(Handle, int64_t*);
  int (*get_sizes)(Handle, int64_t**);
  int (*get_strides)(Handle, int64_t**);
  int (*storage_offset)(Handle, int64_t*);
  size_t (*element_size)(int32_t);
  int (*empty_strided)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
  int (*alloc_from_pool)(Handle, int64_t, int32_t, int64_t, const int64_t*, const int64_t*, Handle*);
  int (*reinterpret)(Handle, int64_t, const int64_t*, const int64_t*, int64_t, Handle*);
  int (*delete_tensor)(Handle);
  int (*new_handle)(Handle, Handle*);
  int (*copy)(Handle, Handle, int32_t);
  int (*num_threads)(uint32_t*);
  _Bool (*grad_enabled)(void);
  void (*set_grad)(_Bool);
  const char* (*what)(void);
  int (*dispatch)(const char*, const char*, Stable*, uint64_t);
  int (*new_list)(size_t, void**);
  int (*push_back)(void*, Stable);
  int (*new_stable)(Stable**);
  int (*new_string)(const char*, size_t, void**);
  PyObject* (*wrap)(Handle);                              /* THPVariable_Wrap(const at::TensorBase&) */
} Api;
extern Api api;

/* Numbers of a geometry lie in a workspace's `numbers` from `at` on: offset, `dim` sizes, `dim` strides. */
typedef struct { int32_t dtype; int64_t dim, at; } Geometry;
#define OFFSET(w, q) ((w)->numbers[(q)->at])
#define SIZES(w, q) ((w)->numbers + (q)->at + 1)
#define STRIDES(w, q) (SIZES(w, q) + (q)->dim)

/* Buffer.kind; number: input index, or where its offset is among the numbers. A TEMP lies in the arena, or in
   another buffer, its host. A LENT buffer is the memory of the input `number`, which the graph owns, or where
   others need that, too, memory of that size. */
enum { INPUT, CONSTANT, TEMP, OUTPUT, EXTERN, LOCAL, LENT };
typedef struct { int kind, host, *guests, n_guests; long long number; PyObject* constant; Geometry geometry; }
    Buffer;
typedef struct { int buffer, whole; Geometry geometry; } View;
typedef struct { int buffer; PyObject* alias; Geometry geometry; } Result;   /* alias: views, or None */

/* An argument of a library kernel, as data. */
enum { A_TENSOR, A_BITS, A_FLOAT, A_NONE, A_OPTIONAL, A_LIST, A_STRING, A_SIZE };
typedef struct Arg { int tag, n; Stable bits; double real; struct Arg* items; PyObject* text; int64_t* ints;
    } Arg;

/* How it is called: boxed through the dispatcher, by a direct C function of one of these signatures, or from
   Python. */
enum { DISPATCH, PYTHON, OUT_TT, OUT_TTT_DD, CONVOLUTION, ATTENTION };
typedef struct {
  int mode, into, n_args, n_returns, n_tensors, n_outs;
  PyObject *name, *overload, *python;
  Arg* args;
  int *outs, *tensors;                                    /* view numbers; -1: that result is not used */
  int64_t python_calls;
} ExternCall;

enum { KERNEL, LIBRARY };
/* makes: buffers that get their memory before the step; frees: those that lose it after */
typedef struct { int kind; void* function; int *operands, n_operands, *makes, n_makes, *frees, n_frees;
    ExternCall* ext; } Step;

typedef struct { int threads; int error; int64_t found; const int64_t* sizes; } Env;     /* as in run.h */

/* Memory for temporaries: any graph's, one call at a time. `id` is no other one's; `spare` counts the calls
   in a row that needed far less. */
typedef struct Arena { struct Arena* next; Handle handle; void* base; int64_t room; uint64_t id, spare; }
    Arena;

/* Memory of one call in flight. */
typedef struct Workspace {
  struct Workspace* next;
  Arena* arena;                                           /* during a call */
  uint64_t filled;                                        /* id of the arena that `fixed` are views of */
  /* fixed: views of arena and constants; handles: per buffer */
  Handle *fixed, *views, *handles;
  char* owned;              /* handles[i] is ours to delete; 2: and nobody else has the memory */
  void **pointers, **operands;
  PyObject** objects;                                     /* wrapped results, per buffer */
  int64_t *sizes, *numbers;                               /* numbers: the graph's own where no size varies */
} Workspace;

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  Py_ssize_t n_inputs, n_buffers, n_views, n_steps, n_results;
  /* the numbers of its geometries, the bytes of its arena first. Those that vary are `patches`, pairs of a
     place and a number of what `compute` makes of the sizes; size i is dimension sources[2i + 1] of input
     sources[2i], or that input itself (-1) */
  int64_t *numbers, n_numbers;
  int *patches, n_patches, *sources, n_sources, n_computed;
  void (*compute)(const int64_t* sizes, int64_t* computed);
  int release_gil, has_extern, max_operands;
  Buffer* buffers; View* views; Step* steps; Result* results;
  PyObject *on_error, *as_strided, *keep, *increment_version, *instead;
  int *written, n_written;                                /* inputs the graph writes to */
  Workspace* free_list;
} Graph;

const char* bind_api(void);                               /* NULL, or the name that is missing */
void* lookup_symbol(const char* name);
PyObject* size_tuple(Graph* g, Workspace* w);
Handle view_handle(Graph* g, Workspace* w, int view);
int64_t add_number(Graph* g, PyObject* n);
int read_extern(Graph* g, Step* s, PyObject* t);
void free_extern(ExternCall* e);
int run_extern(Graph* g, Workspace* w, Step* s, int* released, PyThreadState** state);
