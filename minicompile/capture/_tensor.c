/* Reading tensors and torch's thread state without running Python.
 *
 * In torch 2.13 a tensor's Python object holds its at::Tensor, a pointer to a TensorImpl, right after the
 * object's header. Where the fields that guards compare lie in a TensorImpl is found by probing a tensor
 * with telling sizes, and then verified against Python's own answers on a set of tensors (`verify` below).
 * If anything disagrees, guards read tensors through Python instead: slower, as right. Torch is looked up
 * when the first such guard is built, so this file needs no torch to compile or to load.
 */
#define _GNU_SOURCE
#include "_native.h"

#include <dlfcn.h>
#include <string.h>

/* --- torch's symbols -------------------------------------------------------------------------- */

static struct {
    bool (*requires_grad)(void *impl);
    bool (*grad_mode)(void);
    bool (*inference_mode)(void);
    int8_t (*default_dtype)(void);
    int64_t (*function_modes)(void);
    int8_t (*function_disabled)(void);
    int64_t (*dispatch_modes)(bool infra);
    bool (*autocast_enabled)(int8_t device);
    int8_t (*autocast_dtype)(int8_t device);
    bool (*autocast_cache)(void);
    void *(*context)(void);
    bool (*deterministic)(void *context);
    bool (*deterministic_warn)(void *context);
    bool (*key_included)(uint16_t key);
} torch_c;

typedef struct {
    const char *library, *symbol;
    void *target; /* a pointer to a function pointer above */
} Symbol;

static const Symbol symbols[] = {
    {"libc10.so", "_ZNK3c1010TensorImpl13requires_gradEv", &torch_c.requires_grad},
    {"libc10.so", "_ZN3c108GradMode10is_enabledEv", &torch_c.grad_mode},
    {"libc10.so", "_ZN3c1013InferenceMode10is_enabledEv", &torch_c.inference_mode},
    {"libc10.so", "_ZN3c1031get_default_dtype_as_scalartypeEv", &torch_c.default_dtype},
    {"libc10.so", "_ZN3c104impl20TorchDispatchModeTLS9stack_lenEv", &torch_c.dispatch_modes},
    {"libc10.so", "_ZN3c104impl28tls_is_dispatch_key_includedENS_11DispatchKeyE", &torch_c.key_included},
    {"libtorch_cpu.so", "_ZN2at4impl22PythonTorchFunctionTLS9stack_lenEv", &torch_c.function_modes},
    {"libtorch_cpu.so", "_ZN2at4impl22PythonTorchFunctionTLS18get_disabled_stateEv",
     &torch_c.function_disabled},
    {"libtorch_cpu.so", "_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE",
     &torch_c.autocast_enabled},
    {"libtorch_cpu.so", "_ZN2at8autocast18get_autocast_dtypeEN3c1010DeviceTypeE", &torch_c.autocast_dtype},
    {"libtorch_cpu.so", "_ZN2at8autocast25is_autocast_cache_enabledEv", &torch_c.autocast_cache},
    {"libtorch_cpu.so", "_ZN2at13globalContextEv", &torch_c.context},
    {"libtorch_cpu.so", "_ZNK2at7Context23deterministicAlgorithmsEv", &torch_c.deterministic},
    {"libtorch_cpu.so", "_ZNK2at7Context31deterministicAlgorithmsWarnOnlyEv", &torch_c.deterministic_warn},
};

static bool find_symbols(char *reason, size_t room) {
    for (size_t i = 0; i < sizeof(symbols) / sizeof(*symbols); i++) {
        void *library = dlopen(symbols[i].library, RTLD_NOLOAD | RTLD_LAZY);
        void *address = library ? dlsym(library, symbols[i].symbol) : NULL;
        if (library != NULL) {
            dlclose(library); /* it stays: torch holds it */
        }
        if (address == NULL) {
            snprintf(reason, room, "%s has no %s", symbols[i].library, symbols[i].symbol);
            return false;
        }
        memcpy(symbols[i].target, &address, sizeof address);
    }
    return true;
}

/* --- where the fields are --------------------------------------------------------------------- */

#define INLINE_DIMS 5

/* Offsets into a TensorImpl. `sizes` is that of SizesAndStrides: a count, then 5 sizes and 5 strides, or a
 * pointer to more. */
static struct {
    int sizes, keys, storage;
} layout;

#define OFFSET_STORAGE_OFFSET (8 + 16 * INLINE_DIMS)
#define OFFSET_NUMEL (OFFSET_STORAGE_OFFSET + 8)
#define OFFSET_DTYPE (OFFSET_NUMEL + 8)
#define OFFSET_DEVICE (OFFSET_DTYPE + 2)

static char *impl_of(PyObject *tensor) { return *(char **)((char *)tensor + sizeof(PyObject)); }

static int64_t load64(const char *at) {
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

typedef struct {
    int64_t dim, storage_offset;
    const int64_t *sizes, *strides;
    uint64_t keys;
    int16_t dtype;
    int8_t device, device_index;
    bool requires_grad;
} Fields;

static inline void read_fields(const char *impl, Fields *to) {
    const char *base = impl + layout.sizes;
    to->dim = load64(base);
    to->sizes = to->dim <= INLINE_DIMS ? (const int64_t *)(base + 8) : *(const int64_t *const *)(base + 8);
    to->strides = to->sizes + (to->dim <= INLINE_DIMS ? INLINE_DIMS : to->dim);
    to->storage_offset = load64(base + OFFSET_STORAGE_OFFSET);
    memcpy(&to->dtype, base + OFFSET_DTYPE, 2);
    to->device = base[OFFSET_DEVICE];
    to->device_index = base[OFFSET_DEVICE + 1];
    to->keys = (uint64_t)load64(impl + layout.keys);
}

/* Whether it requires a gradient. What has no autograd metadata, which the pointer behind the storage's leads
 * to, does not. */
static inline bool requires_grad(char *impl) {
    return load64(impl + layout.storage + 8) != 0 && torch_c.requires_grad(impl);
}

static bool find_layout(PyObject *probe, uint64_t keys, uint64_t storage) {
    static const int64_t sizes[] = {3, 3, 5, 7}, strides[] = {101, 13, 2};
    const char *impl = impl_of(probe);
    layout.sizes = layout.keys = layout.storage = 0;
    for (int at = 16; at <= 88 && layout.sizes == 0; at += 8) {
        if ((uint64_t)load64(impl + at) == storage) {
            layout.storage = at;
        }
        if (memcmp(impl + at, sizes, sizeof sizes) == 0 &&
            memcmp(impl + at + 48, strides, sizeof strides) == 0) {
            layout.sizes = at;
        }
    }
    for (int at = layout.sizes + OFFSET_DEVICE + 6;
         layout.sizes > 0 && at <= layout.sizes + OFFSET_DEVICE + 22; at += 2) {
        if (at % 8 == 0 && (uint64_t)load64(impl + at) == keys) {
            layout.keys = at;
        }
    }
    return layout.sizes > 0 && layout.keys > 0 && layout.storage > 0;
}

/* --- the probe -------------------------------------------------------------------------------- */

static uint16_t functorch_key;        /* included while a transform of torch.func runs */
static PyObject *tensor_type = NULL;  /* torch.Tensor, once torch is there */
static PyObject *describe_fn = NULL;  /* describe(tensor) of the text below */
static PyObject *probe_reason = NULL; /* NULL: not probed; None: native reading works; str: why not */

static const char probe_text[] =
    "def describe(t):\n"
    "    keys = torch._C._dispatch_keys(t).raw_repr()\n"
    "    strided = t.layout is torch.strided\n"
    "    return (str(t.dtype), str(t.device), tuple(t.shape), t.stride() if strided else None, "
    "t.requires_grad, keys)\n"
    "def example():\n"
    "    t = torch.empty(1000).as_strided((3, 5, 7), (101, 13, 2), 11)\n"
    "    return t, torch._C._dispatch_keys(t).raw_repr(), t.untyped_storage()._cdata\n"
    "def tensors():\n"
    "    for dtype in (torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8, "
    "torch.complex64):\n"
    "        yield torch.zeros(2, 3, dtype=dtype)\n"
    "    for dim in range(8):\n"
    "        yield torch.empty(tuple(range(2, 2 + dim)), device='meta')\n"
    "    a = torch.ones(4, 6, requires_grad=True)\n"
    "    yield from (a, a.detach(), a.t(), a * 2, a[1:, ::2], torch.nn.Parameter(a.detach()), "
    "torch.ones(()), torch.ones(0, 3))\n"
    "    yield torch.ones(2, 2, 2, 2).to(memory_format=torch.channels_last)\n"
    "    with torch.inference_mode():\n"
    "        yield torch.ones(3)\n"
    "functorch = int(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode)\n"
    "def verify(read):\n"
    "    for t in tensors():\n"
    "        found = read(t)\n"
    "        keys = torch._C._dispatch_keys(t).raw_repr()\n"
    "        python = (str(t.dtype).removeprefix('torch.'), t.device.type, tuple(t.shape), t.stride(), "
    "t.storage_offset(),\n"
    "                  t.requires_grad, keys, t.untyped_storage()._cdata)\n"
    "        if found != python:\n"
    "            return f'native reading gave {found}, Python {python}'\n";

static const char *const dtype_names[] = {
    "uint8",           "int8",
    "int16",           "int32",
    "int64",           "float16",
    "float32",         "float64",
    "complex32",       "complex64",
    "complex128",      "bool",
    "qint8",           "quint8",
    "qint32",          "bfloat16",
    "quint4x2",        "quint2x4",
    "bits1x8",         "bits2x4",
    "bits4x2",         "bits8",
    "bits16",          "float8_e5m2",
    "float8_e4m3fn",   "float8_e5m2fnuz",
    "float8_e4m3fnuz", "uint16",
    "uint32",          "uint64",
};

static const char *dtype_name(int16_t code) {
    return code >= 0 && code < (int)(sizeof(dtype_names) / sizeof(*dtype_names)) ? dtype_names[code]
                                                                                 : "another dtype";
}

static const char *device_name(int8_t code) {
    static const char *const names[] = {"cpu", "cuda", "mkldnn",       "opengl", "opencl", "ideep",
                                        "hip", "fpga", "maia",         "xla",    "vulkan", "metal",
                                        "xpu", "mps",  "meta",         "hpu",    "ve",     "lazy",
                                        "ipu", "mtia", "privateuseone"};
    return code >= 0 && code < (int)(sizeof(names) / sizeof(*names)) ? names[code] : "another device";
}

static PyObject *extents(const int64_t *values, int64_t count) {
    PyObject *tuple = PyTuple_New(count);
    for (int64_t i = 0; tuple != NULL && i < count; i++) {
        PyTuple_SET_ITEM(tuple, i, PyLong_FromLongLong(values[i]));
    }
    return tuple;
}

static PyObject *read_tensor(PyObject *module, PyObject *tensor) {
    Fields fields;
    read_fields(impl_of(tensor), &fields);
    return Py_BuildValue(
        "ssNNLNKK", dtype_name(fields.dtype), device_name(fields.device), extents(fields.sizes, fields.dim),
        extents(fields.strides, fields.dim), (long long)fields.storage_offset,
        PyBool_FromLong(requires_grad(impl_of(tensor))), (unsigned long long)fields.keys,
        (unsigned long long)(uintptr_t)mc_tensor_storage(tensor));
}

static PyMethodDef read_method = {"read", read_tensor, METH_O, NULL};

/* Runs the text above: sets tensor_type and describe_fn, verifies. Returns None or the reason (str); NULL
 * with an error set. */
static PyObject *run_probe(PyObject *torch) {
    char reason[200];
    PyObject *scope =
        Py_BuildValue("{sOsN}", "torch", torch, "__builtins__", Py_NewRef(PyEval_GetBuiltins()));
    PyObject *done = scope ? PyRun_String(probe_text, Py_file_input, scope, scope) : NULL, *result = NULL,
             *example = NULL;
    if (done == NULL) {
        goto end;
    }
    Py_XSETREF(describe_fn, Py_XNewRef(PyDict_GetItemString(scope, "describe")));
    Py_XSETREF(tensor_type, PyObject_GetAttrString(torch, "Tensor"));
    if (tensor_type == NULL || !find_symbols(reason, sizeof reason)) {
        result = tensor_type ? PyUnicode_FromString(reason) : NULL;
        goto end;
    }
    functorch_key = (uint16_t)PyLong_AsUnsignedLong(PyDict_GetItemString(scope, "functorch"));
    PyObject *probe;
    unsigned long long keys, storage;
    example = PyObject_CallNoArgs(PyDict_GetItemString(scope, "example"));
    if (example == NULL || !PyArg_ParseTuple(example, "OKK", &probe, &keys, &storage)) {
        goto end;
    }
    if (!find_layout(probe, keys, storage)) {
        result = PyUnicode_FromString("the layout of a TensorImpl is not the one known");
        goto end;
    }
    PyObject *read = PyCFunction_New(&read_method, NULL);
    result = read ? PyObject_CallOneArg(PyDict_GetItemString(scope, "verify"), read) : NULL;
    Py_XDECREF(read);
end:
    Py_XDECREF(example);
    Py_XDECREF(done);
    Py_XDECREF(scope);
    return result;
}

/* None: tensors are read natively. A str: why they are read through Python. NULL: no torch yet, error set.
 */
PyObject *mc_tensor_probe(PyObject *module, PyObject *unused) {
    if (probe_reason != NULL) {
        return Py_NewRef(probe_reason);
    }
    PyObject *name = PyUnicode_FromString("torch"), *torch = name ? PyImport_GetModule(name) : NULL;
    Py_XDECREF(name);
    if (torch == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_RuntimeError, "torch is not imported: tensors can't be guarded");
        }
        return NULL;
    }
    ThreadHook saved = mc_thread; /* the probe's own frames are nobody's business */
    mc_thread = (ThreadHook){MODE_OFF, NULL, 0};
    probe_reason = run_probe(torch);
    mc_thread = saved;
    Py_DECREF(torch);
    return Py_XNewRef(probe_reason);
}

static bool probed(void) { /* error set if there is no torch */
    if (probe_reason == NULL) {
        Py_XDECREF(mc_tensor_probe(NULL, NULL));
    }
    return probe_reason != NULL;
}

static bool is_native(void) { return probe_reason == Py_None; }

bool mc_is_tensor(PyObject *object) {
    return tensor_type != NULL && PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)tensor_type);
}

/* --- TENSOR guards ---------------------------------------------------------------------------- */

#define ANY_EXTENT INT64_MIN

struct TensorSpec {
    PyTypeObject *type;        /* strong */
    PyObject *snapshot;        /* describe(example), when tensors are read through Python */
    PyObject *sizes, *strides; /* as given: None or tuples; for the slow path */
    Fields fields;
    int64_t extents[]; /* sizes, then strides; ANY_EXTENT: not compared */
};

static bool spec_extents(TensorSpec *spec, PyObject *given, const int64_t *example, int64_t *to) {
    if (given != Py_None && (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != spec->fields.dim)) {
        PyErr_SetString(
            PyExc_ValueError,
            "sizes and strides of a TENSOR guard: None, or a tuple with one int or None per dim");
        return false;
    }
    for (int64_t i = 0; i < spec->fields.dim; i++) {
        PyObject *item = given == Py_None ? NULL : PyTuple_GET_ITEM(given, i);
        to[i] = item == NULL ? example[i] : item == Py_None ? ANY_EXTENT : PyLong_AsLongLong(item);
        if (PyErr_Occurred()) {
            return false;
        }
    }
    return true;
}

static bool is_strided(PyObject *example) {
    PyObject *layout_object = PyObject_GetAttrString(example, "layout"),
             *nested = PyObject_GetAttrString(example, "is_nested");
    PyObject *text = layout_object ? PyObject_Str(layout_object) : NULL;
    bool strided =
        text && nested == Py_False && PyUnicode_CompareWithASCIIString(text, "torch.strided") == 0;
    if (!strided && !PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "a tensor that is not strided can't be guarded: %R",
                     text ? text : Py_None);
    }
    Py_XDECREF(layout_object);
    Py_XDECREF(nested);
    Py_XDECREF(text);
    return strided;
}

static Py_ssize_t dims_of(PyObject *example) {
    PyObject *shape = PyObject_GetAttrString(example, "shape");
    Py_ssize_t dims = shape ? PyObject_Size(shape) : -1;
    Py_XDECREF(shape);
    return dims;
}

TensorSpec *mc_tensor_spec(PyObject *example, PyObject *sizes, PyObject *strides) {
    if (!probed()) {
        return NULL;
    }
    if (!mc_is_tensor(example)) {
        PyErr_Format(PyExc_TypeError, "a TENSOR guard needs a tensor as example, got %.100s",
                     Py_TYPE(example)->tp_name);
        return NULL;
    }
    Py_ssize_t dims = is_strided(example) ? dims_of(example) : -1;
    TensorSpec *spec =
        dims >= 0 ? PyMem_Calloc(1, sizeof(TensorSpec) + 2 * (size_t)dims * sizeof(int64_t)) : NULL;
    if (spec == NULL) {
        return NULL;
    }
    spec->type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(example));
    spec->sizes = Py_NewRef(sizes);
    spec->strides = Py_NewRef(strides);
    bool fine = true;
    if (is_native()) {
        read_fields(impl_of(example), &spec->fields);
        spec->fields.requires_grad = requires_grad(impl_of(example));
        fine = spec->fields.dim == dims && spec_extents(spec, sizes, spec->fields.sizes, spec->extents) &&
               spec_extents(spec, strides, spec->fields.strides, spec->extents + dims);
        spec->fields.sizes = spec->extents;
        spec->fields.strides = spec->extents + dims;
    }
    else {
        spec->snapshot = PyObject_CallOneArg(describe_fn, example);
        fine = spec->snapshot != NULL;
    }
    if (!fine) {
        mc_tensor_spec_free(spec);
        return NULL;
    }
    return spec;
}

void mc_tensor_spec_free(TensorSpec *spec) {
    if (spec == NULL) {
        return;
    }
    Py_XDECREF(spec->type);
    Py_XDECREF(spec->snapshot);
    Py_XDECREF(spec->sizes);
    Py_XDECREF(spec->strides);
    PyMem_Free(spec);
}

static bool extents_match(const int64_t *expected, const int64_t *found, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (expected[i] != found[i] && expected[i] != ANY_EXTENT) {
            return false;
        }
    }
    return true;
}

static bool given_matches(PyObject *given, PyObject *expected, PyObject *found) {
    if (given == Py_None || PyTuple_GET_SIZE(found) != PyTuple_GET_SIZE(given)) {
        return PyObject_RichCompareBool(expected, found, Py_EQ) == 1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++) {
        PyObject *item = PyTuple_GET_ITEM(given, i);
        if (item != Py_None && PyObject_RichCompareBool(item, PyTuple_GET_ITEM(found, i), Py_EQ) != 1) {
            return false;
        }
    }
    return true;
}

static bool matches_slowly(const TensorSpec *spec, PyObject *tensor) {
    PyObject *found = PyObject_CallOneArg(describe_fn, tensor), *expected = spec->snapshot;
    bool same = found != NULL;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(expected); i++) {
        PyObject *given = i == 2 ? spec->sizes : i == 3 ? spec->strides : Py_None;
        same = given_matches(given, PyTuple_GET_ITEM(expected, i), PyTuple_GET_ITEM(found, i));
    }
    Py_XDECREF(found);
    PyErr_Clear();
    return same;
}

bool mc_tensor_matches(const TensorSpec *spec, PyObject *tensor) {
    if (Py_TYPE(tensor) != spec->type) {
        return false;
    }
    if (spec->snapshot != NULL) {
        return matches_slowly(spec, tensor);
    }
    const Fields *expected = &spec->fields;
    Fields found;
    char *impl = impl_of(tensor);
    read_fields(impl, &found);
    return found.keys == expected->keys && found.dim == expected->dim && found.dtype == expected->dtype &&
           found.device == expected->device && found.device_index == expected->device_index &&
           extents_match(expected->sizes, found.sizes, found.dim) &&
           extents_match(expected->strides, found.strides, found.dim) &&
           requires_grad(impl) == expected->requires_grad;
}

static PyObject *extents_text(const int64_t *values, int64_t count) {
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list != NULL && i < count; i++) {
        PyObject *item = values[i] == ANY_EXTENT ? PyUnicode_FromString("*")
                                                 : PyUnicode_FromFormat("%lld", (long long)values[i]);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    PyObject *comma = PyUnicode_FromString(", "),
             *joined = list && comma ? PyUnicode_Join(comma, list) : NULL;
    Py_XDECREF(list);
    Py_XDECREF(comma);
    return joined;
}

static PyObject *extents_mismatch(const char *what, const Fields *expected, const int64_t *a,
                                  const Fields *found, const int64_t *b) {
    PyObject *x = extents_text(a, expected->dim), *y = extents_text(b, found->dim);
    PyObject *text = x && y ? PyUnicode_FromFormat("%s: expected (%U), found (%U)", what, x, y) : NULL;
    Py_XDECREF(x);
    Py_XDECREF(y);
    return text;
}

static PyObject *bool_mismatch(const char *what, bool expected) {
    return PyUnicode_FromFormat("%s: expected %s, found %s", what, expected ? "True" : "False",
                                expected ? "False" : "True");
}

PyObject *mc_tensor_mismatch(const TensorSpec *spec, PyObject *tensor) {
    if (Py_TYPE(tensor) != spec->type) {
        return PyUnicode_FromFormat("type: expected %s, found %s", spec->type->tp_name,
                                    Py_TYPE(tensor)->tp_name);
    }
    if (spec->snapshot != NULL) {
        PyObject *found = PyObject_CallOneArg(describe_fn, tensor);
        PyObject *text =
            found ? PyUnicode_FromFormat("expected %R, found %R", spec->snapshot, found) : NULL;
        Py_XDECREF(found);
        return text;
    }
    const Fields *expected = &spec->fields;
    Fields found;
    read_fields(impl_of(tensor), &found);
    if (found.dtype != expected->dtype) {
        return PyUnicode_FromFormat("dtype: expected %s, found %s", dtype_name(expected->dtype),
                                    dtype_name(found.dtype));
    }
    if (found.device != expected->device || found.device_index != expected->device_index) {
        return PyUnicode_FromFormat("device: expected %s:%d, found %s:%d", device_name(expected->device),
                                    expected->device_index, device_name(found.device), found.device_index);
    }
    if (found.dim != expected->dim || !extents_match(expected->sizes, found.sizes, found.dim)) {
        return extents_mismatch("shape", expected, expected->sizes, &found, found.sizes);
    }
    if (!extents_match(expected->strides, found.strides, found.dim)) {
        return extents_mismatch("stride", expected, expected->strides, &found, found.strides);
    }
    if (torch_c.requires_grad(impl_of(tensor)) != expected->requires_grad) {
        return bool_mismatch("requires_grad", expected->requires_grad);
    }
    return PyUnicode_FromFormat("dispatch keys: expected 0x%llx, found 0x%llx",
                                (unsigned long long)expected->keys, (unsigned long long)found.keys);
}

/* --- other questions about tensors ------------------------------------------------------------ */

static int64_t python_int(PyObject *tensor, const char *method, Py_ssize_t dim, bool with_dim, bool *fine) {
    PyObject *value = with_dim ? PyObject_CallMethod(tensor, method, "n", dim)
                               : PyObject_CallMethod(tensor, method, NULL);
    int64_t result = value ? PyLong_AsLongLong(value) : -1;
    Py_XDECREF(value);
    *fine = !PyErr_Occurred();
    PyErr_Clear();
    return result;
}

void *mc_tensor_storage(PyObject *tensor) {
    if (!mc_is_tensor(tensor)) {
        return NULL;
    }
    if (layout.storage > 0) {
        return *(void **)(impl_of(tensor) + layout.storage);
    }
    PyObject *storage = PyObject_CallMethod(tensor, "untyped_storage", NULL);
    PyObject *address = storage ? PyObject_GetAttrString(storage, "_cdata") : NULL;
    void *result = address ? PyLong_AsVoidPtr(address) : NULL;
    Py_XDECREF(storage);
    Py_XDECREF(address);
    PyErr_Clear();
    return result;
}

bool mc_tensor_extent(PyObject *tensor, Py_ssize_t dim, bool stride, int64_t *value) {
    if (!probed() || !mc_is_tensor(tensor) || dim < 0) {
        return false;
    }
    if (!is_native()) {
        bool fine;
        *value = python_int(tensor, stride ? "stride" : "size", dim, true, &fine);
        return fine;
    }
    Fields fields;
    read_fields(impl_of(tensor), &fields);
    if (dim >= fields.dim) {
        return false;
    }
    *value = stride ? fields.strides[dim] : fields.sizes[dim];
    return true;
}

/* --- ambient state ---------------------------------------------------------------------------- */

static const char *const ambient_names[] = {
    "grad mode",      "inference mode",       "default dtype", "torch function modes",
    "torch function", "torch dispatch modes", "deterministic", "autocast cpu",
    "autocast cuda",  "autocast cache",       "torch.func"};
#define AMBIENT_COUNT (sizeof(ambient_names) / sizeof(*ambient_names))

static uint64_t autocast_state(int8_t device) {
    bool enabled = torch_c.autocast_enabled(device);
    return enabled ? 1 + (uint64_t)(uint8_t)torch_c.autocast_dtype(device) : 0;
}

bool mc_ambient(Ambient *out) {
    if (!probed()) {
        return false;
    }
    if (torch_c.deterministic_warn == NULL) {
        PyErr_Format(PyExc_RuntimeError, "torch's thread state can't be read natively: %S", probe_reason);
        return false;
    }
    void *context = torch_c.context();
    *out = (Ambient){{
        torch_c.grad_mode(),
        torch_c.inference_mode(),
        (uint64_t)(uint8_t)torch_c.default_dtype(),
        (uint64_t)torch_c.function_modes(),
        (uint64_t)(uint8_t)torch_c.function_disabled(),
        (uint64_t)torch_c.dispatch_modes(false),
        (uint64_t)torch_c.deterministic(context) + 2 * (uint64_t)torch_c.deterministic_warn(context),
        autocast_state(0),
        autocast_state(1),
        torch_c.autocast_cache(),
        torch_c.key_included(functorch_key),
    }};
    return true;
}

PyObject *mc_ambient_dict(const Ambient *ambient) {
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < AMBIENT_COUNT; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(ambient->words[i]);
        if (value == NULL || PyDict_SetItemString(dict, ambient_names[i], value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(value);
    }
    return dict;
}

PyObject *mc_ambient_mismatch(const Ambient *expected, const Ambient *found) {
    for (size_t i = 0; i < AMBIENT_COUNT; i++) {
        if (expected->words[i] != found->words[i]) {
            return PyUnicode_FromFormat("%s: expected %llu, found %llu", ambient_names[i],
                                        (unsigned long long)expected->words[i],
                                        (unsigned long long)found->words[i]);
        }
    }
    return PyUnicode_FromString("");
}

int mc_grad_mode(void) {
    if (!probed()) {
        return -1;
    }
    if (torch_c.grad_mode == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "torch has no GradMode::is_enabled");
        return -1;
    }
    return torch_c.grad_mode();
}
