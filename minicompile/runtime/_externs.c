/* Library kernels inside a native call: arguments as data, called directly, through the dispatcher, or from
 * Python.
 *
 * Takes argument templates from codegen.externs; part of `minicompile._launch`. Whatever fails natively is
 * run again from Python, so that the user sees eager's own exception with eager's own words.
 */
#include "_launch.h"
#include <dlfcn.h>
#include <string.h>

/* ---- libtorch ------------------------------------------------------------------------------------------ */

static void* libtorch;

void* lookup_symbol(const char* name) {
  if (!libtorch) libtorch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  return libtorch ? dlsym(libtorch, name) : NULL;
}

static const struct { const char* name; size_t at; } FUNCTIONS[] = {
#define F(field, name) {name, offsetof(Api, field)}
  F(data_ptr, "aoti_torch_get_data_ptr"), F(get_dtype, "aoti_torch_get_dtype"), F(get_dim,
      "aoti_torch_get_dim"),
  F(get_sizes, "aoti_torch_get_sizes"), F(get_strides, "aoti_torch_get_strides"),
  F(storage_offset, "aoti_torch_get_storage_offset"), F(element_size, "aoti_torch_dtype_element_size"),
  F(empty_strided, "aoti_torch_empty_strided"), F(alloc_from_pool, "aoti_torch__alloc_from_pool"),
  F(reinterpret, "aoti_torch__reinterpret_tensor"), F(delete_tensor, "aoti_torch_delete_tensor_object"),
  F(new_handle, "aoti_torch_new_tensor_handle"), F(copy, "aoti_torch_copy_"), F(num_threads,
      "torch_get_num_threads"),
  F(grad_enabled, "aoti_torch_grad_mode_is_enabled"), F(set_grad, "aoti_torch_grad_mode_set_enabled"),
  F(what, "torch_exception_get_what_without_backtrace"), F(dispatch, "torch_call_dispatcher"),
  F(new_list, "torch_new_list_reserve_size"), F(push_back, "torch_list_push_back"),
  F(new_stable, "torch_new_stable_ivalue"), F(new_string, "torch_new_string_handle"),
#undef F
};

const char* bind_api(void) {
  for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; ++i) {
    void* f = lookup_symbol(FUNCTIONS[i].name);
    if (!f) return FUNCTIONS[i].name;
    memcpy((char*)&api + FUNCTIONS[i].at, &f, sizeof f);
  }
  int32_t (*uint8)(void) = (int32_t (*)(void))lookup_symbol("aoti_torch_dtype_uint8");
  uint64_t (*abi)(void) = (uint64_t (*)(void))lookup_symbol("aoti_torch_abi_version");
  void* python = dlopen("libtorch_python.so", RTLD_NOLOAD | RTLD_LAZY);
  void* wrap = python ? dlsym(python, "_Z16THPVariable_WrapRKN2at10TensorBaseE") : NULL;
  if (!uint8 || !abi || !wrap) return "aoti_torch_abi_version or THPVariable_Wrap";
  api.dtype_uint8 = uint8();
  api.abi = abi();
  memcpy(&api.wrap, &wrap, sizeof wrap);
  return NULL;
}

/* ---- argument templates -------------------------------------------------------------------------------- */

static void free_args(Arg* a, int n) {
  for (int i = 0; a && i < n; ++i) { free_args(a[i].items, a[i].n); PyMem_Free(a[i].ints);
      Py_XDECREF(a[i].text); }
  PyMem_Free(a);
}

/* ("tensor", view) ("bits", int) ("float", x) ("none",) ("optional", inner) ("list", inner...) ("string", s)
   ("size", number of what is computed)
   */
static int read_arg(Graph* g, Arg* a, PyObject* t) {
  static const char* const TAGS[] = {"tensor", "bits", "float", "none", "optional", "list", "string",
      "size"};
  const char* tag = PyTuple_Check(t) && PyTuple_GET_SIZE(t) ? PyUnicode_AsUTF8(PyTuple_GET_ITEM(t, 0)) : NULL;
  const Py_ssize_t rest = tag ? PyTuple_GET_SIZE(t) - 1 : 0;
  for (a->tag = 0; tag && a->tag < 8 && strcmp(tag, TAGS[a->tag]); ++a->tag) {}
  if (!tag || a->tag == 8) { PyErr_SetString(PyExc_ValueError, "bad argument template"); return -1; }
  PyObject* x = rest ? PyTuple_GET_ITEM(t, 1) : NULL;
  if (a->tag == A_TENSOR || a->tag == A_BITS) a->bits = x ? (Stable)PyLong_AsLongLong(x) : 0;
  else if (a->tag == A_FLOAT) { a->real = PyFloat_AsDouble(x); memcpy(&a->bits, &a->real, sizeof a->bits); }
  else if (a->tag == A_SIZE) a->bits = (Stable)add_number(g, x);
  else if (a->tag == A_STRING) a->text = Py_NewRef(x);
  else if (a->tag == A_OPTIONAL || a->tag == A_LIST) {
    a->n = (int)rest;
    a->items = PyMem_Calloc(rest + 1, sizeof(Arg));
    a->ints = PyMem_Calloc(rest + 1, sizeof(int64_t));
    if (!a->items || !a->ints) { PyErr_NoMemory(); return -1; }
    for (Py_ssize_t i = 0; i < rest; ++i) {
      if (read_arg(g, &a->items[i], PyTuple_GET_ITEM(t, i + 1)) < 0) return -1;
      a->ints[i] = (int64_t)a->items[i].bits;             /* an integer list as direct calls take it */
    }
  }
  return PyErr_Occurred() ? -1 : 0;
}

static int read_numbers(PyObject* tuple, int** out, int* n) {
  *n = (int)PyTuple_GET_SIZE(tuple);
  *out = PyMem_Calloc(*n + 1, sizeof(int));
  if (!*out) { PyErr_NoMemory(); return -1; }
  for (int i = 0; i < *n; ++i) (*out)[i] = (int)PyLong_AsLong(PyTuple_GET_ITEM(tuple, i));
  return PyErr_Occurred() ? -1 : 0;
}

/* (mode, name, overload, into, args, returns, outs, tensors, python) */
int read_extern(Graph* g, Step* s, PyObject* t) {
  PyObject *args, *outs, *tensors;
  ExternCall* e = s->ext = PyMem_Calloc(1, sizeof *e);
  if (!e) { PyErr_NoMemory(); return -1; }
  if (!PyArg_ParseTuple(t, "iUUpO!iO!O!O", &e->mode, &e->name, &e->overload, &e->into, &PyTuple_Type, &args,
      &e->n_returns,
                        &PyTuple_Type, &outs, &PyTuple_Type, &tensors, &e->python)) {
    e->name = e->overload = e->python = NULL;
    return -1;
  }
  Py_INCREF(e->name); Py_INCREF(e->overload); Py_INCREF(e->python);
  if (read_numbers(outs, &e->outs, &e->n_outs) < 0 || read_numbers(tensors, &e->tensors,
      &e->n_tensors) < 0) return -1;
  const Py_ssize_t n = PyTuple_GET_SIZE(args);
  e->args = PyMem_Calloc(n + 1, sizeof(Arg));
  if (!e->args) { PyErr_NoMemory(); return -1; }
  for (e->n_args = 0; e->n_args < n; ++e->n_args)
    if (read_arg(g, &e->args[e->n_args], PyTuple_GET_ITEM(args, e->n_args)) < 0) { ++e->n_args; return -1; }
  return 0;
}

void free_extern(ExternCall* e) {
  if (!e) return;
  free_args(e->args, e->n_args);
  Py_XDECREF(e->name); Py_XDECREF(e->overload); Py_XDECREF(e->python);
  PyMem_Free(e->outs); PyMem_Free(e->tensors);
  PyMem_Free(e);
}

/* ---- through the dispatcher ---------------------------------------------------------------------------- */

/* The boxed call consumes what it is given: tensors as new handles, lists and optionals made anew. */
static int to_stable(Graph* g, Workspace* w, const Arg* a, Stable* out) {
  Handle h, fresh;
  void* made;
  switch (a->tag) {
    case A_TENSOR:
      h = view_handle(g, w, (int)a->bits);
      if (!h || api.new_handle(h, &fresh)) return -1;
      *out = (Stable)(uintptr_t)fresh;
      return 0;
    case A_BITS: case A_FLOAT: *out = a->bits; return 0;
    case A_SIZE: *out = (Stable)w->numbers[a->bits]; return 0;
    case A_NONE: *out = 0; return 0;
    case A_OPTIONAL: {
      Stable* cell;
      Stable inner;
      if (to_stable(g, w, &a->items[0], &inner) < 0 || api.new_stable(&cell)) return -1;
      *cell = inner;
      *out = (Stable)(uintptr_t)cell;
      return 0;
    }
    case A_LIST:
      if (api.new_list((size_t)a->n, &made)) return -1;
      for (int i = 0; i < a->n; ++i) {
        Stable item;
        if (to_stable(g, w, &a->items[i], &item) < 0 || api.push_back(made, item)) return -1;
      }
      *out = (Stable)(uintptr_t)made;
      return 0;
    default: {
      Py_ssize_t n;
      const char* text = PyUnicode_AsUTF8AndSize(a->text, &n);
      if (!text || api.new_string(text, (size_t)n, &made)) return -1;
      *out = (Stable)(uintptr_t)made;
      return 0;
    }
  }
}

static int same_geometry(Workspace* w, Handle h, const Geometry* q) {
  int64_t dim, *sizes, *strides, numel = 1;
  if (api.get_dim(h, &dim) || dim != q->dim || api.get_sizes(h, &sizes) || api.get_strides(h,
      &strides)) return 0;
  for (int64_t d = 0; d < dim; ++d) numel *= sizes[d];
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] != SIZES(w, q)[d]) return 0;
    if (strides[d] != STRIDES(w, q)[d] && sizes[d] != 1 && numel) return 0;
  }
  return 1;
}

/* Takes over a result of a library kernel. A layout other than the planned one is copied into the planned
   one. */
static int adopt(Graph* g, Workspace* w, int view, Handle h) {
  if (view < 0) { api.delete_tensor(h); return 0; }
  View* v = &g->views[view];
  const int b = v->buffer;
  if (g->buffers[b].kind != EXTERN) {
    Handle out = view_handle(g, w, view);
    const int bad = !out || api.copy(out, h, 0);
    api.delete_tensor(h);
    return bad ? -1 : 0;
  }
  if (!same_geometry(w, h, &v->geometry)) {
    Handle planned;
    const Geometry* q = &v->geometry;
    if (api.empty_strided(q->dim, SIZES(w, q), STRIDES(w, q), q->dtype, 0, 0, &planned)) {
      api.delete_tensor(h);
      return -1;
    }
    const int bad = api.copy(planned, h, 0);
    api.delete_tensor(h);
    if (bad) { api.delete_tensor(planned); return -1; }
    h = planned;
  }
  if (w->owned[b]) api.delete_tensor(w->handles[b]);
  w->handles[b] = h;
  w->owned[b] = 1;
  return api.data_ptr(h, &w->pointers[b]) ? -1 : 0;
}

static int by_dispatcher(Graph* g, Workspace* w, ExternCall* e) {
  Stable stack[64];
  if (e->n_args > 64 || e->n_returns > 64) return -1;
  for (int i = 0; i < e->n_args; ++i)
    if (to_stable(g, w, &e->args[i], &stack[i]) < 0) return -1;
  if (api.dispatch(PyUnicode_AsUTF8(e->name), PyUnicode_AsUTF8(e->overload), stack, api.abi)) return -1;
  int status = 0;
  for (int i = 0; i < e->n_returns; ++i) {
    Handle h = (Handle)(uintptr_t)stack[i];
    if (e->into) api.delete_tensor(h);                    /* a second name of the memory we gave */
    else if (h && adopt(g, w, i < e->n_outs ? e->outs[i] : -1, h) < 0) status = -1;
  }
  return status;
}

/* ---- direct calls of hot kernels ----------------------------------------------------------------------- */

static int by_function(Graph* g, Workspace* w, Step* s) {
  ExternCall* e = s->ext;
  Arg* a = e->args;
  Handle t[8], results[2] = {NULL, NULL};
  int n = 0;
  for (int i = 0; i < e->n_args && n < 8; ++i) {
    const Arg* x = a[i].tag == A_OPTIONAL ? &a[i].items[0] : &a[i];
    if (x->tag == A_TENSOR && !(t[n++] = view_handle(g, w, (int)x->bits))) return -1;
  }
  if (e->mode == OUT_TT) return ((int (*)(Handle, Handle, Handle))s->function)(t[0], t[1], t[2]) ? -1 : 0;
  if (e->mode == OUT_TTT_DD)
    return ((int (*)(Handle, Handle, Handle, Handle, double, double))s->function)(t[0], t[1], t[2], t[3],
        a[4].real, a[5].real) ? -1 : 0;
  /* input weight bias? stride padding dilation transposed output_padding groups */
  if (e->mode == CONVOLUTION) {
    typedef int (*Conv)(Handle, Handle, Handle*, const int64_t*, int64_t, const int64_t*, int64_t,
        const int64_t*, int64_t,
                        int32_t, const int64_t*, int64_t, int64_t, Handle*);
    if (((Conv)s->function)(t[0], t[1], a[2].tag == A_NONE ? NULL : &t[2], a[3].ints, a[3].n, a[4].ints,
        a[4].n, a[5].ints,
                            a[5].n, (int32_t)a[6].bits, a[7].ints, a[7].n, (int64_t)a[8].bits,
                                &results[0])) return -1;
    return adopt(g, w, e->outs[0], results[0]);
  }
  /* ATTENTION: query key value dropout_p is_causal mask? scale? -> output, logsumexp */
  typedef int (*Attention)(Handle, Handle, Handle, double, int32_t, Handle*, double*, Handle*, Handle*);
  double scale = a[6].tag == A_NONE ? 0 : a[6].items[0].real;
  if (((Attention)s->function)(t[0], t[1], t[2], a[3].real, (int32_t)a[4].bits, a[5].tag == A_NONE ? NULL
      : &t[3],
                               a[6].tag == A_NONE ? NULL : &scale, &results[0], &results[1])) return -1;
  const int bad = adopt(g, w, e->outs[0], results[0]);
  return adopt(g, w, e->n_outs > 1 ? e->outs[1] : -1, results[1]) < 0 || bad ? -1 : 0;
}

/* ---- from Python --------------------------------------------------------------------------------------- */

static PyObject* wrap_views(Graph* g, Workspace* w, const int* views, int n) {
  PyObject* list = PyList_New(n);
  for (int i = 0; list && i < n; ++i) {
    Handle h = views[i] < 0 ? NULL : view_handle(g, w, views[i]);
    PyObject* x = views[i] < 0 ? Py_NewRef(Py_None) : h ? api.wrap(h) : NULL;
    if (!x) {
      if (!PyErr_Occurred()) PyErr_Format(PyExc_RuntimeError, "%s", api.what());
      Py_CLEAR(list);
      break;
    }
    PyList_SET_ITEM(list, i, x);
  }
  return list;
}

/* python(tensors, outs or None, sizes) -> None where it wrote into outs, else a sequence of results. */
static int by_python(Graph* g, Workspace* w, ExternCall* e) {
  int status = -1;
  ++e->python_calls;
  PyObject* tensors = wrap_views(g, w, e->tensors, e->n_tensors);
  PyObject* outs = !tensors ? NULL : e->into ? wrap_views(g, w, e->outs, e->n_outs) : Py_NewRef(Py_None);
  PyObject* sizes = outs ? size_tuple(g, w) : NULL;
  PyObject* got = sizes ? PyObject_CallFunctionObjArgs(e->python, tensors, outs, sizes, NULL) : NULL;
  if (got && !e->into) {
    PyObject* fast = PySequence_Fast(got, "a library call must give a sequence of tensors");
    status = fast ? 0 : -1;
    for (int i = 0; fast && status == 0 && i < e->n_outs && i < PySequence_Fast_GET_SIZE(fast); ++i) {
      PyObject* x = PySequence_Fast_GET_ITEM(fast, i);
      Handle h;
      if (e->outs[i] < 0) continue;
      if (!PyObject_TypeCheck(x, api.tensor_base)) PyErr_Format(PyExc_TypeError, "result %d is no tensor", i);
      else if (api.new_handle(HANDLE(x), &h) || adopt(g, w, e->outs[i],
          h) < 0) PyErr_Format(PyExc_RuntimeError, "%s", api.what());
      if (PyErr_Occurred()) status = -1;
    }
    Py_XDECREF(fast);
  } else if (got) status = 0;
  Py_XDECREF(got); Py_XDECREF(sizes); Py_XDECREF(outs); Py_XDECREF(tensors);
  return status;
}

int run_extern(Graph* g, Workspace* w, Step* s, int* released, PyThreadState** state) {
  ExternCall* e = s->ext;
  int status = e->mode == PYTHON ? -1 : e->mode == DISPATCH ? by_dispatcher(g, w, e) : by_function(g, w, s);
  if (status == 0) return 0;
  if (*released) PyEval_RestoreThread(*state);
  status = by_python(g, w, e);
  if (*released) *state = PyEval_SaveThread();            /* a pending exception stays with this thread */
  return status;
}
