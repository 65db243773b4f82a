/* Graph: one compiled graph as a native callable. Tensors in, tensors out, and nothing of Python in between.
 *
 * Takes a program from codegen.driver (buffers, views, steps, results: see Graph_new), gives
 * `minicompile._launch`. A call collects the inputs' addresses, allocates the outputs, walks the steps
 * (emitted kernels by function pointer, library kernels through the C interface that libtorch exports) and
 * wraps the results. Temporaries lie in an arena, which a call takes from those that all graphs of the
 * process share, and gives back; what else a call needs is a workspace of its graph. Concurrent calls get one
 * each.
 *
 * No torch header is used. Tensors cross as AtenTensorHandle, which points to an at::Tensor; a torch.Tensor
 * object is { PyObject_HEAD; at::Tensor; ... }, so the address behind its head is such a handle (`probe` lets
 * the driver verify).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

#include "_launch.h"

Api api;

/* ---- program structures -------------------------------------------------------------------------------- */

/* Appends a number; one that varies is given as (number of what is computed,). Gives its place, or -1. */
int64_t add_number(Graph* g, PyObject* n) {
  const int64_t at = g->n_numbers++;
  const size_t bytes = 2 * (at + 1) * sizeof(int64_t);
  if (!(at & (at + 1)) && !(g->numbers = PyMem_Realloc(g->numbers, bytes))) goto full;
  if (!PyTuple_Check(n)) { g->numbers[at] = PyLong_AsLongLong(n); return at; }
  const int p = 2 * g->n_patches++;
  if (!(p & (p + 2)) && !(g->patches = PyMem_Realloc(g->patches, 2 * (p + 2) * sizeof(int)))) goto full;
  g->numbers[at] = 0;
  g->patches[p] = (int)at;
  g->patches[p + 1] = (int)PyLong_AsLong(PyTuple_GET_ITEM(n, 0));
  return at;
full:
  PyErr_NoMemory();
  return -1;
}

static int spec_of(Graph* graph, PyObject* t, Geometry* g) {  /* (dtype code, sizes, strides, offset) */
  PyObject *sizes, *strides, *offset;
  if (!PyArg_ParseTuple(t, "iO!O!O", &g->dtype, &PyTuple_Type, &sizes, &PyTuple_Type, &strides,
      &offset)) return -1;
  g->dim = PyTuple_GET_SIZE(sizes);
  g->at = add_number(graph, offset);
  for (int64_t d = 0; d < g->dim; ++d) add_number(graph, PyTuple_GET_ITEM(sizes, d));
  for (int64_t d = 0; d < g->dim; ++d) add_number(graph, PyTuple_GET_ITEM(strides, d));
  return PyErr_Occurred() ? -1 : 0;
}

static int read_buffers(Graph* g, PyObject* list) {
  g->n_buffers = PyList_GET_SIZE(list);
  g->buffers = PyMem_Calloc(g->n_buffers + 1, sizeof(Buffer));
  if (!g->buffers) { PyErr_NoMemory(); return -1; }
  for (Py_ssize_t i = 0; i < g->n_buffers; ++i) {   /* (kind, number, payload); TEMP: its host or None */
    Buffer* b = &g->buffers[i];
    PyObject *number, *payload;
    if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "iOO", &b->kind, &number, &payload)) return -1;
    b->number = b->kind == TEMP ? add_number(g, number) : PyLong_AsLongLong(number);
    b->host = b->kind == TEMP && payload != Py_None ? (int)PyLong_AsLong(payload) : -1;
    if (PyErr_Occurred()) return -1;
    if (b->kind == CONSTANT) b->constant = Py_NewRef(payload);
    else if (b->kind >= OUTPUT && b->kind != LOCAL && spec_of(g, payload, &b->geometry) < 0) return -1;
  }
  for (int i = 0; i < (int)g->n_buffers; ++i) {
    if (g->buffers[i].host < 0) continue;
    Buffer* h = &g->buffers[g->buffers[i].host];
    h->guests = PyMem_Realloc(h->guests, (h->n_guests + 1) * sizeof(int));
    if (!h->guests) { PyErr_NoMemory(); return -1; }
    h->guests[h->n_guests++] = i;
  }
  return 0;
}

static int read_views(Graph* g, PyObject* list) {
  g->n_views = PyList_GET_SIZE(list);
  g->views = PyMem_Calloc(g->n_views + 1, sizeof(View));
  if (!g->views) { PyErr_NoMemory(); return -1; }
  for (Py_ssize_t i = 0; i < g->n_views; ++i) {           /* (buffer, is the whole buffer, geometry) */
    View* v = &g->views[i];
    PyObject* geometry;
    if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "iiO", &v->buffer, &v->whole, &geometry)) return -1;
    if (spec_of(g, geometry, &v->geometry) < 0) return -1;
  }
  return 0;
}

static int read_ints(PyObject* tuple, int** out, int* n) {
  *n = (int)PyTuple_GET_SIZE(tuple);
  *out = PyMem_Calloc(*n + 1, sizeof(int));
  if (!*out) { PyErr_NoMemory(); return -1; }
  for (int i = 0; i < *n; ++i) (*out)[i] = (int)PyLong_AsLong(PyTuple_GET_ITEM(tuple, i));
  return PyErr_Occurred() ? -1 : 0;
}

static int read_steps(Graph* g, PyObject* list) {
  g->n_steps = PyList_GET_SIZE(list);
  g->steps = PyMem_Calloc(g->n_steps + 1, sizeof(Step));
  if (!g->steps) { PyErr_NoMemory(); return -1; }
  for (Py_ssize_t i = 0; i < g->n_steps; ++i) {
    Step* s = &g->steps[i];
    /* (kind, function address, operands, makes, frees, extern or None) */
    PyObject* t = PyList_GET_ITEM(list, i);
    unsigned long long address;
    PyObject *operands, *makes, *frees, *ext;
    if (!PyArg_ParseTuple(t, "iKO!O!O!O", &s->kind, &address, &PyTuple_Type, &operands, &PyTuple_Type, &makes,
        &PyTuple_Type, &frees, &ext)) return -1;
    s->function = (void*)(uintptr_t)address;
    if (read_ints(operands, &s->operands, &s->n_operands) < 0 || read_ints(makes, &s->makes, &s->n_makes) < 0
        || read_ints(frees, &s->frees, &s->n_frees) < 0) return -1;
    if (s->n_operands > g->max_operands) g->max_operands = s->n_operands;
    if (ext != Py_None && read_extern(g, s, ext) < 0) return -1;
  }
  return 0;
}

static int read_results(Graph* g, PyObject* list) {
  g->n_results = PyList_GET_SIZE(list);
  g->results = PyMem_Calloc(g->n_results + 1, sizeof(Result));
  if (!g->results) { PyErr_NoMemory(); return -1; }
  for (Py_ssize_t i = 0; i < g->n_results; ++i) {         /* (buffer, None or (geometry, views or None)) */
    PyObject *alias, *geometry, *views;
    Result* r = &g->results[i];
    if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "iO", &r->buffer, &alias)) return -1;
    if (alias == Py_None) continue;
    if (!PyArg_ParseTuple(alias, "OO", &geometry, &views)) return -1;
    if (spec_of(g, geometry, &r->geometry) < 0) return -1;
    r->alias = Py_NewRef(views);
  }
  return 0;
}

/* ---- arenas -------------------------------------------------------------------------------------------- */

static Arena* arenas;                           /* those of no call; the GIL is the lock of the list */

static void free_arena(Arena* a) {
  api.delete_tensor(a->handle);
  PyMem_Free(a);
}

static void free_arenas(void) {
  while (arenas) { Arena* a = arenas; arenas = a->next; free_arena(a); }
}

/* The smallest that has room. Where none has, one of those that are too small goes; so does one that was much
   too large many times in a row. NULL: there is no memory. */
static Arena* take_arena(int64_t size) {
  static uint64_t ids = 1;
  Arena **best = NULL, *a;
  for (Arena** p = &arenas; *p; p = &(*p)->next)
    if ((*p)->room >= size && (!best || (*p)->room < (*best)->room)) best = p;
  if (best) {
    a = *best;
    *best = a->next;
    a->spare = a->room >> 24 && a->room / 4 > size ? a->spare + 1 : 0;
    if (a->spare < 1000) return a;
    free_arena(a);
  } else if (arenas) {
    a = arenas;
    arenas = a->next;
    free_arena(a);
  }
  const int64_t stride[1] = {1};
  a = PyMem_Calloc(1, sizeof *a);
  if (a && (api.empty_strided(1, &size, stride, api.dtype_uint8, 0, 0, &a->handle)
      || api.data_ptr(a->handle, &a->base))) { PyMem_Free(a); return NULL; }
  if (a) { a->room = size; a->id = ++ids; }
  return a;
}

static void give_arena(Arena* a) {
  a->next = arenas;
  arenas = a;
}

/* ---- workspaces ---------------------------------------------------------------------------------------- */

static void free_workspace(Graph* g, Workspace* w) {
  if (!w) return;
  for (Py_ssize_t i = 0; i < g->n_views; ++i)
    if (w->fixed && w->fixed[i]) api.delete_tensor(w->fixed[i]);
  PyMem_Free(w->fixed); PyMem_Free(w->views); PyMem_Free(w->handles); PyMem_Free(w->owned);
  PyMem_Free(w->pointers); PyMem_Free(w->operands); PyMem_Free(w->objects);
  PyMem_Free(w->sizes);
  if (w->numbers != g->numbers) PyMem_Free(w->numbers);
  PyMem_Free(w);
}

/* What depends on sizes and the arena only: views of it and of constants. */
static int fill_workspace(Graph* g, Workspace* w) {
  w->filled = 0;
  for (Py_ssize_t i = 0; i < g->n_views; ++i)
    if (w->fixed[i]) { api.delete_tensor(w->fixed[i]); w->fixed[i] = NULL; }
  for (Py_ssize_t i = 0; i < g->n_buffers; ++i) {
    Buffer* b = &g->buffers[i];
    if (b->kind == TEMP && b->host < 0) w->pointers[i] = (char*)w->arena->base + w->numbers[b->number];
    if (b->kind == CONSTANT) {
      w->handles[i] = HANDLE(b->constant);
      if (api.data_ptr(w->handles[i], &w->pointers[i])) return -1;
    }
  }
  for (Py_ssize_t i = 0; i < g->n_views; ++i) {
    View* v = &g->views[i];
    Geometry* q = &v->geometry;
    Buffer* b = &g->buffers[v->buffer];
    if (b->kind == TEMP && b->host < 0) {
      const int64_t item = (int64_t)api.element_size(q->dtype);
      if (api.alloc_from_pool(w->arena->handle, w->numbers[b->number] + OFFSET(w, q) * item, q->dtype, q->dim,
          SIZES(w, q), STRIDES(w, q), &w->fixed[i])) return -1;
    } else if (b->kind == CONSTANT) {
      if (api.reinterpret(w->handles[v->buffer], q->dim, SIZES(w, q), STRIDES(w, q), OFFSET(w, q),
          &w->fixed[i])) return -1;
    }
  }
  w->filled = w->arena ? w->arena->id : 1;
  return 0;
}

/* with the GIL held, which is the lock of the list */
static Workspace* take_workspace(Graph* g) {
  Workspace* w = g->free_list;
  if (w) { g->free_list = w->next; return w; }
  w = PyMem_Calloc(1, sizeof *w);
  if (!w) { PyErr_NoMemory(); return NULL; }
  w->fixed = PyMem_Calloc(g->n_views + 1, sizeof(Handle));
  w->views = PyMem_Calloc(g->n_views + 1, sizeof(Handle));
  w->handles = PyMem_Calloc(g->n_buffers + 1, sizeof(Handle));
  w->owned = PyMem_Calloc(g->n_buffers + 1, 1);
  w->pointers = PyMem_Calloc(g->n_buffers + 1, sizeof(void*));
  w->operands = PyMem_Calloc(g->max_operands + 1, sizeof(void*));
  w->objects = PyMem_Calloc(g->n_buffers + 1, sizeof(PyObject*));
  w->sizes = PyMem_Calloc(g->n_sources + 1, sizeof(int64_t));
  w->numbers = g->n_sources ? PyMem_Calloc(g->n_numbers, sizeof(int64_t)) : g->numbers;
  for (int i = 0; w->sizes && i < g->n_sources; ++i) w->sizes[i] = -1;      /* of no call yet */
  if (!w->fixed || !w->views || !w->handles || !w->owned || !w->pointers || !w->operands || !w->objects
      || !w->sizes || !w->numbers) {
    PyErr_NoMemory();
    free_workspace(g, w);
    return NULL;
  }
  return w;
}

static void give_workspace(Graph* g, Workspace* w) {      /* with the GIL held */
  for (Py_ssize_t i = 0; i < g->n_views; ++i)
    if (w->views[i]) { api.delete_tensor(w->views[i]); w->views[i] = NULL; }
  for (Py_ssize_t i = 0; i < g->n_buffers; ++i) {
    if (w->owned[i]) { api.delete_tensor(w->handles[i]); w->handles[i] = NULL; w->owned[i] = 0; }
    Py_CLEAR(w->objects[i]);
  }
  if (w->arena) { give_arena(w->arena); w->arena = NULL; }
  w->next = g->free_list;
  g->free_list = w;
}

static void give_back(Graph* g) {                         /* the memory kept between calls */
  while (g->free_list) { Workspace* w = g->free_list; g->free_list = w->next; free_workspace(g, w); }
  free_arenas();
}

/* The handle of a view during a call; made on first use where it is not fixed. NULL on failure. */
Handle view_handle(Graph* g, Workspace* w, int i) {
  if (w->fixed[i]) return w->fixed[i];
  View* v = &g->views[i];
  Buffer* b = &g->buffers[v->buffer];
  Geometry* q = &v->geometry;
  if (b->kind == TEMP) {
    const int64_t item = (int64_t)api.element_size(q->dtype);
    if (!w->views[i] && api.alloc_from_pool(w->handles[b->host], w->numbers[b->number] + OFFSET(w, q) * item,
        q->dtype, q->dim, SIZES(w, q), STRIDES(w, q), &w->views[i])) return NULL;
    return w->views[i];
  }
  if (v->whole) return w->handles[v->buffer];
  if (!w->views[i]) {
    Handle base = w->handles[v->buffer];     /* the offset given is added to the tensor's own */
    if (!base || api.reinterpret(base, q->dim, SIZES(w, q), STRIDES(w, q), OFFSET(w, q),
        &w->views[i])) return NULL;
  }
  return w->views[i];
}

/* ---- the call ------------------------------------------------------------------------------------------ */

/* Memory for a buffer that outlives the arena, or lends its memory: not before it is needed. */
static int make(Graph* g, Workspace* w, int i) {
  Buffer* b = &g->buffers[i];
  Geometry* q = &b->geometry;
  if (b->kind == LENT && w->owned[b->number] == 2) {
    w->handles[i] = w->handles[b->number];
    w->pointers[i] = w->pointers[b->number];
  } else {
    if (api.empty_strided(q->dim, SIZES(w, q), STRIDES(w, q), q->dtype, 0, 0, &w->handles[i])) return -1;
    w->owned[i] = 1;
    if (api.data_ptr(w->handles[i], &w->pointers[i])) return -1;
  }
  for (int k = 0; k < b->n_guests; ++k)
    w->pointers[b->guests[k]] = (char*)w->pointers[i] + w->numbers[g->buffers[b->guests[k]].number];
  return 0;
}

static void let_go(Graph* g, Workspace* w, int b) {
  for (Py_ssize_t j = 0; j < g->n_views; ++j)
    if (w->views[j] && (g->views[j].buffer == b || g->buffers[g->views[j].buffer].host == b)) {
      api.delete_tensor(w->views[j]);
      w->views[j] = NULL;
    }
  if (w->owned[b]) { api.delete_tensor(w->handles[b]); w->handles[b] = NULL; w->owned[b] = 0; }
}

static int run_steps(Graph* g, Workspace* w, Env* env, int* released, PyThreadState** state) {
  for (Py_ssize_t i = 0; i < g->n_steps; ++i) {
    Step* s = &g->steps[i];
    for (int k = 0; k < s->n_makes; ++k)
      if (make(g, w, s->makes[k]) < 0) {
        if (*released) PyEval_RestoreThread(*state);
        PyErr_Format(PyExc_RuntimeError, "%s", api.what());
        if (*released) *state = PyEval_SaveThread();
        return -1;
      }
    if (s->kind == KERNEL) {
      for (int k = 0; k < s->n_operands; ++k) w->operands[k] = w->pointers[s->operands[k]];
      ((void (*)(void* const*, Env*))s->function)(w->operands, env);
    } else if (run_extern(g, w, s, released, state) < 0) return -1;
    for (int k = 0; k < s->n_frees; ++k) let_go(g, w, s->frees[k]);
  }
  return 0;
}

/* Reads the sizes of a call; where they differ from the workspace's last ones, all that depends on them is
   made anew. */
static int take_sizes(Graph* g, Workspace* w, PyObject* const* args) {
  int changed = 0;
  for (int i = 0; i < g->n_sources; ++i) {
    PyObject* x = args[g->sources[2 * i]];
    const int d = g->sources[2 * i + 1];
    int64_t n, *sizes;
    if (d < 0) {
      n = PyLong_AsLongLong(x);
      if (n == -1 && PyErr_Occurred()) return -1;
    } else {
      if (api.get_sizes(HANDLE(x), &sizes)) goto failed;
      n = sizes[d];
    }
    changed |= n != w->sizes[i];
    w->sizes[i] = n;
  }
  if (!changed) return 0;
  int64_t* computed = PyMem_Malloc((g->n_computed + 1) * sizeof(int64_t));
  if (!computed) { PyErr_NoMemory(); return -1; }
  g->compute(w->sizes, computed);
  memcpy(w->numbers, g->numbers, g->n_numbers * sizeof(int64_t));
  for (int i = 0; i < g->n_patches; ++i) w->numbers[g->patches[2 * i]] = computed[g->patches[2 * i + 1]];
  PyMem_Free(computed);
  w->filled = 0;
  return 0;
failed:
  w->sizes[0] = -1;
  PyErr_Format(PyExc_RuntimeError, "%s", api.what());
  return -1;
}

/* The sizes of the call for code in Python. */
PyObject* size_tuple(Graph* g, Workspace* w) {
  PyObject* t = PyTuple_New(g->n_sources);
  for (int i = 0; t && i < g->n_sources; ++i) PyTuple_SET_ITEM(t, i, PyLong_FromLongLong(w->sizes[i]));
  return t;
}

/* own: what the inputs that are given for good are to the call, per input (see Workspace.owned); their
   places in `args` are cleared. NULL: there are none. */
static int start_call(Graph* g, Workspace* w, PyObject** args, const char* own) {
  if (take_sizes(g, w, args) < 0) return -1;
  if (w->numbers[0] && !(w->arena = take_arena(w->numbers[0]))) goto failed;
  if (w->filled != (w->arena ? w->arena->id : 1) && fill_workspace(g, w) < 0) goto failed;
  for (Py_ssize_t i = 0; i < g->n_buffers; ++i) {
    Buffer* b = &g->buffers[i];
    if (b->kind != INPUT) continue;
    w->handles[i] = HANDLE(args[b->number]);
    if (own && own[b->number]) {
      Handle held = w->handles[i];
      if (api.new_handle(held, &w->handles[i])) goto failed;
      w->owned[i] = own[b->number];
      Py_SETREF(args[b->number], Py_NewRef(Py_None));
    }
    if (api.data_ptr(w->handles[i], &w->pointers[i])) goto failed;
  }
  return 0;
failed:
  PyErr_Format(PyExc_RuntimeError, "minicompile: a call cannot start: %s", api.what());
  return -1;
}

/* The Python object of a buffer that is an input or fresh memory. Borrowed. */
static PyObject* buffer_object(Graph* g, Workspace* w, int b, PyObject* const* args) {
  if (g->buffers[b].kind == INPUT) return args[g->buffers[b].number];
  if (g->buffers[b].kind == CONSTANT) return g->buffers[b].constant;
  if (!w->objects[b] && (w->handles[b] || make(g, w, b) == 0)) w->objects[b] = api.wrap(w->handles[b]);
  return w->objects[b];
}

static PyObject* int_tuple(const int64_t* n, int64_t dim) {
  PyObject* t = PyTuple_New(dim);
  for (int64_t d = 0; t && d < dim; ++d) PyTuple_SET_ITEM(t, d, PyLong_FromLongLong(n[d]));
  return t;
}

static PyObject* collect(Graph* g, Workspace* w, PyObject* const* args) {
  PyObject* out = PyTuple_New(g->n_results);
  for (Py_ssize_t i = 0; out && i < g->n_results; ++i) {
    Result* r = &g->results[i];
    PyObject* x = buffer_object(g, w, r->buffer, args);
    /* an alias: the user's own as_strided, in the user's grad mode */
    if (x && r->alias) {
      const Geometry* q = &r->geometry;
      PyObject* call[4] = {x, int_tuple(SIZES(w, q), q->dim), int_tuple(STRIDES(w, q), q->dim),
          r->alias == Py_None ? PyLong_FromLongLong(OFFSET(w, q)) : Py_NewRef(r->alias)};
      x = call[1] && call[2] && call[3] ? PyObject_Vectorcall(g->as_strided, call, 4, NULL) : NULL;
      for (int k = 1; k < 4; ++k) Py_XDECREF(call[k]);
    } else Py_XINCREF(x);
    if (!x) { Py_CLEAR(out); break; }
    PyTuple_SET_ITEM(out, i, x);
  }
  return out;
}

/* An input that was written to has a new version, as after eager's in-place operators. */
static int count_writes(Graph* g, PyObject* const* args) {
  if (!g->n_written) return 0;
  PyObject* list = PyList_New(g->n_written);
  for (int i = 0; list && i < g->n_written; ++i) PyList_SET_ITEM(list, i, Py_NewRef(args[g->written[i]]));
  PyObject* done = list ? PyObject_CallOneArg(g->increment_version, list) : NULL;
  Py_XDECREF(list); Py_XDECREF(done);
  return done ? 0 : -1;
}

static int is_size(Graph* g, Py_ssize_t input) {
  for (int i = 0; i < g->n_sources; ++i)
    if (g->sources[2 * i] == input && g->sources[2 * i + 1] < 0) return 1;
  return 0;
}

static PyObject* run_call(Graph* g, PyObject** args, Py_ssize_t n, const char* own) {
  if (n != g->n_inputs)
    return PyErr_Format(PyExc_TypeError, "this graph takes %zd tensors, not %zd", g->n_inputs, n);
  for (Py_ssize_t i = 0; i < n; ++i)
    if (Py_TYPE(args[i]) != api.tensor_type && !PyObject_TypeCheck(args[i], api.tensor_base)
        && !(PyLong_Check(args[i]) && is_size(g, i)))
      return PyErr_Format(PyExc_TypeError, "argument %zd is a %s, not a tensor", i,
          Py_TYPE(args[i])->tp_name);
  Workspace* w = take_workspace(g);
  if (!w) return NULL;
  PyObject* out = NULL;
  if (start_call(g, w, args, own) == 0) {
    Env env = {1, 0, 0, w->sizes};
    uint32_t threads = 1;
    if (api.num_threads(&threads) == 0) env.threads = (int)threads;
    int released = g->release_gil;
    PyThreadState* state = released ? PyEval_SaveThread() : NULL;
    const int grad = g->has_extern && api.grad_enabled();
    if (grad) api.set_grad(0);
    const int status = run_steps(g, w, &env, &released, &state);
    if (grad) api.set_grad(1);
    if (released) PyEval_RestoreThread(state);
    if (status == 0 && env.error) {
      PyObject* r = PyObject_CallFunction(g->on_error, "iL", env.error - 1, (long long)env.found);
      Py_XDECREF(r);                                      /* it raises */
    } else if (status == 0 && count_writes(g, args) == 0) out = collect(g, w, args);
  }
  give_workspace(g, w);
  return out;
}

static PyObject* Graph_call(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  const Py_ssize_t n = PyVectorcall_NARGS(nargsf);
  return run_call((Graph*)self, (PyObject**)args, kwnames && PyTuple_GET_SIZE(kwnames) ? -1 : n, NULL);
}

/* consume(list of inputs, bytes): a call to which inputs are given for good: those that are 1 are let go of
   after their last use, those that are 2 nobody else has, so the graph may write to them. The list
   loses them. */
static PyObject* Graph_consume(PyObject* self, PyObject* args) {
  PyObject* list;
  const char* own;
  Py_ssize_t n;
  if (!PyArg_ParseTuple(args, "O!y#", &PyList_Type, &list, &own, &n)) return NULL;
  if (n != PyList_GET_SIZE(list)) return PyErr_Format(PyExc_ValueError, "consume: one byte per input");
  return run_call((Graph*)self, ((PyListObject*)list)->ob_item, n, own);
}

/* Calls `instead`: see runtime/contest.py. Where there is none, a call costs nothing more. */
static PyObject* call_instead(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  PyObject* other = Py_NewRef(((Graph*)self)->instead);
  PyObject* out = PyObject_Vectorcall(other, args, PyVectorcall_NARGS(nargsf), kwnames);
  Py_DECREF(other);
  return out;
}

static PyObject* Graph_run(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return Graph_call(self, args, (size_t)n, NULL);
}

/* ---- type ---------------------------------------------------------------------------------------------- */

static void Graph_dealloc(PyObject* self) {
  Graph* g = (Graph*)self;
  PyObject_GC_UnTrack(self);
  give_back(g);
  for (Py_ssize_t i = 0; i < g->n_buffers && g->buffers; ++i) {
    Py_XDECREF(g->buffers[i].constant);
    PyMem_Free(g->buffers[i].guests);
  }
  for (Py_ssize_t i = 0; i < g->n_steps && g->steps; ++i) {
    PyMem_Free(g->steps[i].operands); PyMem_Free(g->steps[i].makes); PyMem_Free(g->steps[i].frees);
    free_extern(g->steps[i].ext);
  }
  for (Py_ssize_t i = 0; i < g->n_results && g->results; ++i) Py_XDECREF(g->results[i].alias);
  PyMem_Free(g->buffers); PyMem_Free(g->views); PyMem_Free(g->steps); PyMem_Free(g->results);
  PyMem_Free(g->written); PyMem_Free(g->numbers); PyMem_Free(g->patches); PyMem_Free(g->sources);
  Py_XDECREF(g->on_error); Py_XDECREF(g->as_strided); Py_XDECREF(g->keep); Py_XDECREF(g->increment_version);
  Py_XDECREF(g->instead);
  Py_TYPE(self)->tp_free(self);
}

static int Graph_traverse(PyObject* self, visitproc visit, void* arg) {
  Graph* g = (Graph*)self;
  Py_VISIT(g->on_error); Py_VISIT(g->keep); Py_VISIT(g->instead);
  for (Py_ssize_t i = 0; i < g->n_steps && g->steps; ++i)
    if (g->steps[i].ext) Py_VISIT(g->steps[i].ext->python);
  return 0;
}

/* Graph(inputs, arena_bytes, release_gil, buffers, views, steps, results, on_error, as_strided, keep,
 *       written, increment_version, sources, compute, computed): a number that varies is (k,), entry k of
 *       the `computed` ones that the function at the address `compute` makes of the sizes */
static PyObject* Graph_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  (void)kwargs;
  PyObject *buffers, *views, *steps, *results, *on_error, *as_strided, *keep, *written, *increment, *arena;
  PyObject* sources;
  unsigned long long compute;
  int computed;
  Py_ssize_t inputs; int release;
  if (!api.ready) return PyErr_Format(PyExc_RuntimeError, "minicompile._launch.bind has not been called");
  if (!PyArg_ParseTuple(args, "nOpO!O!O!O!OOOO!OO!Ki", &inputs, &arena, &release, &PyList_Type, &buffers,
      &PyList_Type, &views,
                        &PyList_Type, &steps, &PyList_Type, &results, &on_error, &as_strided,
                            &keep, &PyTuple_Type, &written, &increment, &PyTuple_Type, &sources,
                            &compute, &computed)) return NULL;
  Graph* g = (Graph*)type->tp_alloc(type, 0);
  if (!g) return NULL;
  g->vectorcall = Graph_call;
  g->n_inputs = inputs; g->release_gil = release; g->n_computed = computed;
  g->compute = (void (*)(const int64_t*, int64_t*))(uintptr_t)compute;
  g->on_error = Py_NewRef(on_error); g->as_strided = Py_NewRef(as_strided); g->keep = Py_NewRef(keep);
  g->increment_version = Py_NewRef(increment);
  if (add_number(g, arena) < 0 || read_ints(written, &g->written, &g->n_written) < 0
      || read_ints(sources, &g->sources, &g->n_sources) < 0) { Py_DECREF(g); return NULL; }
  g->n_sources /= 2;
  if (read_buffers(g, buffers) < 0 || read_views(g, views) < 0 || read_steps(g, steps) < 0 || read_results(g,
      results) < 0) {
    Py_DECREF(g);
    return NULL;
  }
  for (Py_ssize_t i = 0; i < g->n_steps; ++i) g->has_extern |= g->steps[i].kind != KERNEL;
  return (PyObject*)g;
}

/* How often each step has been run from Python: what C could not pass, or what failed. */
static PyObject* Graph_python_calls(PyObject* self, void* none) {
  (void)none;
  Graph* g = (Graph*)self;
  PyObject* out = PyTuple_New(g->n_steps);
  for (Py_ssize_t i = 0; out && i < g->n_steps; ++i)
    PyTuple_SET_ITEM(out, i, PyLong_FromLongLong(g->steps[i].ext ? g->steps[i].ext->python_calls : 0));
  return out;
}
static PyObject* Graph_instead(PyObject* self, void* none) {
  (void)none;
  PyObject* other = ((Graph*)self)->instead;
  return Py_NewRef(other ? other : Py_None);
}
static int Graph_set_instead(PyObject* self, PyObject* value, void* none) {
  (void)none;
  Graph* g = (Graph*)self;
  PyObject *before = g->instead, *other = value && value != Py_None ? Py_NewRef(value) : NULL;
  g->vectorcall = other ? call_instead : Graph_call;
  g->instead = other;
  Py_XDECREF(before);
  return 0;
}
static PyGetSetDef getset[] = {
  {"instead", Graph_instead, Graph_set_instead, "what a call of the graph calls in its place; None: nothing",
   NULL},
  {"python_calls", Graph_python_calls, NULL, "per step: how often it was run from Python", NULL},
  {NULL, NULL, NULL, NULL, NULL},
};

static PyObject* Graph_rest(PyObject* self, PyObject* none) {
  (void)none;
  give_back((Graph*)self);
  Py_RETURN_NONE;
}

static PyMethodDef graph_methods[] = {
  {"consume", Graph_consume, METH_VARARGS, 
   "consume(inputs, own): a call to which some inputs are given for good."},
  {"rest", Graph_rest, METH_NOARGS, "Gives back the memory kept between calls."},
  {"run", (PyCFunction)(void (*)(void))Graph_run, METH_FASTCALL, "The graph itself, whatever `instead` is."},
  {NULL, NULL, 0, NULL},
};

static PyTypeObject GraphType = {
  PyVarObject_HEAD_INIT(NULL, 0)
  .tp_name = "minicompile._launch.Graph",
  .tp_doc = "A compiled graph: call it with the input tensors, get a tuple of output tensors.",
  .tp_basicsize = sizeof(Graph),
  .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
  .tp_new = Graph_new,
  .tp_getset = getset,
  .tp_methods = graph_methods,
  .tp_dealloc = Graph_dealloc,
  .tp_traverse = Graph_traverse,
  .tp_call = PyVectorcall_Call,
  .tp_vectorcall_offset = offsetof(Graph, vectorcall),
};

/* ---- module -------------------------------------------------------------------------------------------- */

/* bind(torch.Tensor, torch._C.TensorBase): looks up libtorch's functions; torch must have been imported. */
static PyObject* bind(PyObject* self, PyObject* args) {
  (void)self;
  PyObject *tensor, *base;
  if (!PyArg_ParseTuple(args, "O!O!", &PyType_Type, &tensor, &PyType_Type, &base)) return NULL;
  const char* missing = bind_api();
  if (missing) return PyErr_Format(PyExc_ImportError, "libtorch has no %s: minicompile needs torch 2.13",
      missing);
  api.tensor_type = (PyTypeObject*)Py_NewRef(tensor);
  api.tensor_base = (PyTypeObject*)Py_NewRef(base);
  api.ready = 1;
  Py_RETURN_NONE;
}

/* probe(tensor) -> (address of its data, dtype code, sizes) as the C interface sees them through our handle.
   */
static PyObject* probe(PyObject* self, PyObject* t) {
  (void)self;
  void* data; int32_t dtype; int64_t dim, *sizes;
  if (api.data_ptr(HANDLE(t), &data) || api.get_dtype(HANDLE(t), &dtype) || api.get_dim(HANDLE(t), &dim)
      || api.get_sizes(HANDLE(t), &sizes)) return PyErr_Format(PyExc_RuntimeError, "%s", api.what());
  PyObject* shape = PyTuple_New(dim);
  for (int64_t d = 0; shape && d < dim; ++d) PyTuple_SET_ITEM(shape, d, PyLong_FromLongLong(sizes[d]));
  return Py_BuildValue("KiN", (unsigned long long)(uintptr_t)data, dtype, shape);
}

/* lookup_address() -> address of `void* lookup(const char*)` for mc_bind; symbol(name) -> address in
   libtorch_cpu or 0. */
static PyObject* lookup_address(PyObject* self, PyObject* none) {
  (void)self; (void)none;
  return PyLong_FromVoidPtr((void*)(uintptr_t)lookup_symbol);
}
static PyObject* symbol(PyObject* self, PyObject* name) {
  (void)self;
  const char* text = PyUnicode_AsUTF8(name);
  return text ? PyLong_FromVoidPtr(lookup_symbol(text)) : NULL;
}

static PyMethodDef methods[] = {
  {"bind", bind, METH_VARARGS, "bind(torch.Tensor, torch._C.TensorBase): finds libtorch's functions."},
  {"probe", probe, METH_O, "probe(tensor): what the C interface reads through our handle."},
  {"lookup_address", lookup_address, METH_NOARGS, "Address of the symbol lookup that libraries bind with."},
  {"symbol", symbol, METH_O, "Address of a symbol of libtorch_cpu, 0 where there is none."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "minicompile._launch",
    "Native calls of compiled graphs.", -1,
                                    methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__launch(void) {
  PyObject* m = PyModule_Create(&module);
  if (!m || PyType_Ready(&GraphType) < 0 || PyModule_AddObjectRef(m, "Graph",
      (PyObject*)&GraphType) < 0) return NULL;
  return m;
}
