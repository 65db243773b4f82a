/* The eval-frame hook (PEP 523): offers every Python frame that starts in a capturing thread to a handler.
 *
 * Takes a handler and a callable; while the callable runs, each frame that CPython starts in this thread,
 * whoever started it (Python, or C code that calls a sort key, a property, an `__init__`), is offered:
 * handler(code, function, localsplus, namespace, resumed). What the handler returns is the frame's result,
 * NotImplemented lets the frame run. Frames of other threads run as ever: the mode is thread-local, and the
 * eval-frame function is installed only while some thread needs it, because its presence alone makes Python
 * calls slower.
 *
 * The module's functions: capture, suspend, divert, set_policy, get_policy, set_entries, mode.
 */
#include "_native.h"

#define Py_BUILD_CORE 1
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE

_Thread_local ThreadHook mc_thread = {MODE_OFF, NULL, 0};
PyObject *mc_null = NULL;

/* --- per-code data ---------------------------------------------------------------------------- */

typedef enum { POLICY_OFFER = 0, POLICY_NATIVE = 1, POLICY_SUSPEND = 2 } Policy;

typedef struct {
    Policy policy;
    PyObject
        *compiled; /* CompiledFunction that frames of this code are diverted to in MODE_DIVERT, or NULL */
} CodeExtra;

static Py_ssize_t extra_index = -1;

#if PY_VERSION_HEX >= 0x030C0000
#define request_extra_index PyUnstable_Eval_RequestCodeExtraIndex
#define code_get_extra PyUnstable_Code_GetExtra
#define code_set_extra PyUnstable_Code_SetExtra
#else
#define request_extra_index _PyEval_RequestCodeExtraIndex
#define code_get_extra _PyCode_GetExtra
#define code_set_extra _PyCode_SetExtra
#endif

static void extra_free(void *pointer) {
    CodeExtra *extra = pointer;
    if (extra == NULL) {
        return;
    }
    Py_CLEAR(extra->compiled);
    PyMem_Free(extra);
}

static CodeExtra *extra_find(PyCodeObject *code) {
    void *extra = NULL;
    if (code_get_extra((PyObject *)code, extra_index, &extra) < 0) {
        PyErr_Clear(); /* only for something that is not a code object */
        return NULL;
    }
    return extra;
}

static CodeExtra *extra_make(PyObject *code) {
    if (!PyCode_Check(code)) {
        PyErr_Format(PyExc_TypeError, "expected a code object, got %.100s", Py_TYPE(code)->tp_name);
        return NULL;
    }
    CodeExtra *extra = extra_find((PyCodeObject *)code);
    if (extra != NULL) {
        return extra;
    }
    extra = PyMem_Calloc(1, sizeof(CodeExtra));
    if (extra == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (code_set_extra(code, extra_index, extra) < 0) {
        PyMem_Free(extra);
        return NULL;
    }
    return extra;
}

/* --- frames ----------------------------------------------------------------------------------- */

#if PY_VERSION_HEX >= 0x030D0000
#define frame_code(frame) _PyFrame_GetCode(frame)
#define frame_function(frame) ((frame)->f_funcobj)
#elif PY_VERSION_HEX >= 0x030C0000
#define frame_code(frame) ((frame)->f_code)
#define frame_function(frame) ((frame)->f_funcobj)
#else
#define frame_code(frame) ((frame)->f_code)
#define frame_function(frame) ((PyObject *)(frame)->f_func)
#endif

static PyObject *frame_locals(_PyInterpreterFrame *frame, PyCodeObject *code) {
    Py_ssize_t count = code->co_nlocalsplus;
    PyObject *list = PyList_New(count);
    if (list == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *value = frame->localsplus[i] ? frame->localsplus[i] : mc_null;
        PyList_SET_ITEM(list, i, Py_NewRef(value));
    }
    return list;
}

/* End a frame that was never evaluated. In 3.11 the caller of the eval-frame function clears the frame.
 * From 3.12 on evaluation itself has to; the functions for it are not exported by 3.12, so an exception is
 * thrown in at the frame's start, where no handler can be active, and CPython unwinds it. */
static PyObject *frame_finish(PyThreadState *tstate, _PyInterpreterFrame *frame, PyObject *result) {
#if PY_VERSION_HEX >= 0x030C0000
    if (result == NULL) {
        return _PyEval_EvalFrameDefault(tstate, frame, 1);
    }
    PyErr_SetNone(PyExc_GeneratorExit);
    PyObject *none = _PyEval_EvalFrameDefault(tstate, frame, 1);
    if (none != NULL || !PyErr_ExceptionMatches(PyExc_GeneratorExit)) {
        Py_XDECREF(
            none); /* recursion limit while unwinding, or memory: the frame is gone, the error stands */
        Py_DECREF(result);
        return NULL;
    }
    PyErr_Clear();
#else
    (void)tstate;
    (void)frame;
#endif
    return result;
}

static void hook_install(bool on);

/* Runs the frame itself with the hook off for it and all below it. */
static PyObject *frame_suspended(PyThreadState *tstate, _PyInterpreterFrame *frame, int throwflag) {
    ThreadHook saved = mc_thread;
    mc_thread = (ThreadHook){MODE_OFF, NULL, 0};
    hook_install(false);
    PyObject *result = _PyEval_EvalFrameDefault(tstate, frame, throwflag);
    hook_install(true);
    mc_thread = saved;
    return result;
}

static PyObject *frame_offer(PyThreadState *tstate, _PyInterpreterFrame *frame) {
    PyCodeObject *code = frame_code(frame);
    bool resumed = frame->owner == FRAME_OWNED_BY_GENERATOR;
    PyObject *locals = frame_locals(frame, code);
    if (locals == NULL) {
        return frame_finish(tstate, frame, NULL);
    }
    PyObject *args[] = {NULL,
                        (PyObject *)code,
                        frame_function(frame),
                        locals,
                        frame->f_locals ? frame->f_locals : Py_None,
                        resumed ? Py_True : Py_False};
    PyObject *handler = Py_NewRef(mc_thread.handler);
    PyObject *result = PyObject_Vectorcall(handler, args + 1, 5 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_DECREF(handler);
    Py_DECREF(locals);
    if (result == Py_NotImplemented) {
        Py_DECREF(result);
        return _PyEval_EvalFrameDefault(tstate, frame, 0);
    }
    if (result == mc_null) {
        Py_SETREF(result, Py_NewRef(Py_NotImplemented));
    }
    if (result != NULL && resumed) {
        Py_DECREF(result);
        result = NULL;
        PyErr_SetString(PyExc_RuntimeError,
                        "a resumed generator frame can only run itself: return NotImplemented");
    }
    if (resumed) {
        return _PyEval_EvalFrameDefault(tstate, frame,
                                        1); /* the generator gets the exception, as by throw() */
    }
    return frame_finish(tstate, frame, result);
}

static PyObject *frame_divert(PyThreadState *tstate, _PyInterpreterFrame *frame, PyObject *compiled) {
    Py_INCREF(compiled);
    PyObject *result = mc_compiled_run(compiled, frame_function(frame), frame->localsplus);
    Py_DECREF(compiled);
    return frame_finish(tstate, frame, result);
}

static Py_ssize_t installed_count =
    0; /* C frames, over all threads, that want the hook; guarded by the GIL */
static _PyFrameEvalFunction previous_eval = _PyEval_EvalFrameDefault; /* CPython's, or another tool's */

static PyObject *eval_frame(PyThreadState *tstate, _PyInterpreterFrame *frame, int throwflag) {
    if (mc_thread.mode == MODE_OFF) {
        return previous_eval(tstate, frame, throwflag);
    }
    if (tstate->tracing > mc_thread.tracing) { /* what an audit or trace function does is no program's */
        return _PyEval_EvalFrameDefault(tstate, frame, throwflag);
    }
    CodeExtra *extra = extra_find(frame_code(frame));
    if (extra != NULL && extra->policy == POLICY_NATIVE) {
        return _PyEval_EvalFrameDefault(tstate, frame, throwflag);
    }
    if (extra != NULL && extra->policy == POLICY_SUSPEND) {
        return frame_suspended(tstate, frame, throwflag);
    }
    if (throwflag) { /* a generator is being thrown into or closed: nothing to decide, it must run */
        return _PyEval_EvalFrameDefault(tstate, frame, throwflag);
    }
    if (mc_thread.mode == MODE_CAPTURE) {
        return frame_offer(tstate, frame);
    }
    if (extra != NULL && extra->compiled != NULL && frame->owner != FRAME_OWNED_BY_GENERATOR) {
        return frame_divert(tstate, frame, extra->compiled);
    }
    return _PyEval_EvalFrameDefault(tstate, frame, throwflag);
}

/* --- switching the hook on and off ------------------------------------------------------------ */

static void hook_install(bool on) {
    PyInterpreterState *interpreter = PyInterpreterState_Get();
    _PyFrameEvalFunction current = _PyInterpreterState_GetEvalFrameFunc(interpreter);
    if (on && installed_count++ == 0 && current != eval_frame) {
        previous_eval = current;
        _PyInterpreterState_SetEvalFrameFunc(interpreter, eval_frame);
    }
    else if (!on && --installed_count == 0 &&
             current == eval_frame) { /* else another tool came after us: its turn */
        _PyInterpreterState_SetEvalFrameFunc(interpreter, previous_eval);
    }
}

/* Takes away another tool's eval-frame function, which would treat our compiler as the user's program; the
 * result goes to mc_foreign_hook_on. */
void *mc_foreign_hook_off(void) {
    PyInterpreterState *interpreter = PyInterpreterState_Get();
    _PyFrameEvalFunction current = _PyInterpreterState_GetEvalFrameFunc(interpreter);
    if (current == eval_frame || current == _PyEval_EvalFrameDefault) {
        return NULL;
    }
    _PyInterpreterState_SetEvalFrameFunc(interpreter, _PyEval_EvalFrameDefault);
    return (void *)current;
}

void mc_foreign_hook_on(void *taken) {
    if (taken != NULL) {
        _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), (_PyFrameEvalFunction)taken);
    }
}

/* Call args[0](*args[1:], **kw) in `mode`, and put the thread's state back whatever happens. */
static PyObject *call_in_mode(Mode mode, PyObject *handler, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames) {
    ThreadHook saved = mc_thread;
    mc_thread = (ThreadHook){mode, handler, PyThreadState_Get()->tracing};
    int change = (mode != MODE_OFF) - (saved.mode != MODE_OFF);
    if (change) {
        hook_install(change > 0);
    }
    Py_XINCREF(handler);
    PyObject *result = PyObject_Vectorcall(args[0], args + 1, (size_t)(nargs - 1), kwnames);
    Py_XDECREF(handler);
    if (change) {
        hook_install(change < 0);
    }
    mc_thread = saved;
    return result;
}

PyDoc_STRVAR(capture_doc, "capture(handler, fn, *args, **kwargs)\n\nReturn fn(*args, **kwargs), offering "
                          "every Python frame that starts in this "
                          "thread meanwhile:\nhandler(code, function, localsplus, namespace, resumed) "
                          "gives the frame's result, or NotImplemented to let it run (NULL stands for the "
                          "result NotImplemented).\n"
                          "`localsplus`: list in the order of the code's locals, cells and free variables; "
                          "unset ones are `NULL` (cells are not made yet, and\nfree "
                          "variables not copied, when a frame starts). `namespace`: the dict of a class or "
                          "module body, else None. `resumed`: a generator\nthat existed "
                          "before goes on. The handler's own code gets the policy NATIVE.");

static PyObject *hook_capture(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames) {
    if (nargs < 2 || !PyCallable_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "capture(handler, fn, *args, **kwargs) needs two callables");
        return NULL;
    }
    PyObject *handler = args[0];
    PyObject *function = PyMethod_Check(handler) ? PyMethod_GET_FUNCTION(handler) : handler;
    if (PyFunction_Check(function)) {
        CodeExtra *extra = extra_make(PyFunction_GET_CODE(function));
        if (extra == NULL) {
            return NULL;
        }
        if (extra->policy == POLICY_OFFER) {
            extra->policy = POLICY_NATIVE; /* a handler that were offered its own frame would never end */
        }
    }
    return call_in_mode(MODE_CAPTURE, handler, args + 1, nargs - 1, kwnames);
}

PyDoc_STRVAR(
    suspend_doc,
    "suspend(fn, *args, **kwargs)\n\nReturn fn(*args, **kwargs) with the hook off in this thread.");

static PyObject *hook_suspend(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames) {
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "suspend(fn, *args, **kwargs) needs a callable");
        return NULL;
    }
    return call_in_mode(MODE_OFF, NULL, args, nargs, kwnames);
}

PyDoc_STRVAR(divert_doc, "divert(fn, *args, **kwargs)\n\nReturn fn(*args, **kwargs); frames of codes given "
                         "to set_entries() go to their compiled "
                         "function.");

static PyObject *hook_divert(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "divert(fn, *args, **kwargs) needs a callable");
        return NULL;
    }
    return call_in_mode(MODE_DIVERT, NULL, args, nargs, kwnames);
}

/* --- policy ----------------------------------------------------------------------------------- */

static int policy_set(PyObject *code, Policy policy, bool nested) {
    CodeExtra *extra = extra_make(code);
    if (extra == NULL) {
        return -1;
    }
    extra->policy = policy;
    PyObject *consts = ((PyCodeObject *)code)->co_consts;
    for (Py_ssize_t i = 0; nested && i < PyTuple_GET_SIZE(consts); i++) {
        PyObject *inner = PyTuple_GET_ITEM(consts, i);
        if (PyCode_Check(inner) && policy_set(inner, policy, true) < 0) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(set_policy_doc, "set_policy(code, policy, nested=False)\n\nOFFER: frames of this code are "
                             "offered (the default). NATIVE: they run, "
                             "frames they start are\noffered. SUSPEND: they run with the hook off for "
                             "everything below. `nested`: the codes among its constants too.");

static PyObject *hook_set_policy(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"code", "policy", "nested", NULL};
    PyObject *code;
    int policy, nested = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oi|p", names, &code, &policy, &nested)) {
        return NULL;
    }
    if (policy < POLICY_OFFER || policy > POLICY_SUSPEND) {
        PyErr_Format(PyExc_ValueError, "no such policy: %d", policy);
        return NULL;
    }
    if (policy_set(code, (Policy)policy, nested) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *hook_get_policy(PyObject *module, PyObject *code) {
    if (!PyCode_Check(code)) {
        PyErr_SetString(PyExc_TypeError, "get_policy(code) needs a code object");
        return NULL;
    }
    CodeExtra *extra = extra_find((PyCodeObject *)code);
    return PyLong_FromLong(extra ? extra->policy : POLICY_OFFER);
}

PyDoc_STRVAR(set_entries_doc, "set_entries(code, compiled)\n\nSend frames of `code` that start inside "
                              "divert() through the entries of the "
                              "CompiledFunction;\nNone ends it. The compiled function's own code must be "
                              "another one (code.replace()).");

static PyObject *hook_set_entries(PyObject *module, PyObject *args) {
    PyObject *code, *compiled;
    if (!PyArg_ParseTuple(args, "OO", &code, &compiled)) {
        return NULL;
    }
    if (compiled != Py_None && !PyObject_TypeCheck(compiled, &CompiledFunction_Type)) {
        PyErr_SetString(PyExc_TypeError, "set_entries(code, compiled) needs a CompiledFunction or None");
        return NULL;
    }
    CodeExtra *extra = extra_make(code);
    if (extra == NULL) {
        return NULL;
    }
    PyObject *old = extra->compiled;
    extra->compiled = compiled == Py_None ? NULL : Py_NewRef(compiled);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

static PyObject *hook_mode(PyObject *module, PyObject *unused) { return PyLong_FromLong(mc_thread.mode); }

static PyObject *hook_installed(PyObject *module, PyObject *unused) {
    return PyBool_FromLong(_PyInterpreterState_GetEvalFrameFunc(PyInterpreterState_Get()) == eval_frame);
}

/* --- ambient state, as the guards see it ------------------------------------------------------ */

static PyObject *native_ambient(PyObject *module, PyObject *unused) {
    Ambient now;
    return mc_ambient(&now) ? mc_ambient_dict(&now) : NULL;
}

/* --- the NULL sentinel ------------------------------------------------------------------------ */

static PyObject *null_repr(PyObject *self) { return PyUnicode_FromString("<NULL>"); }

static PyTypeObject Null_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "minicompile._native.NullType",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_repr = null_repr,
    .tp_doc = "Type of NULL, which stands for an unset slot of a frame.",
};

/* --- the module ------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"capture", (PyCFunction)(void (*)(void))hook_capture, METH_FASTCALL | METH_KEYWORDS, capture_doc},
    {"suspend", (PyCFunction)(void (*)(void))hook_suspend, METH_FASTCALL | METH_KEYWORDS, suspend_doc},
    {"divert", (PyCFunction)(void (*)(void))hook_divert, METH_FASTCALL | METH_KEYWORDS, divert_doc},
    {"set_policy", (PyCFunction)(void (*)(void))hook_set_policy, METH_VARARGS | METH_KEYWORDS,
     set_policy_doc},
    {"get_policy", hook_get_policy, METH_O, "get_policy(code): OFFER, NATIVE or SUSPEND."},
    {"set_entries", hook_set_entries, METH_VARARGS, set_entries_doc},
    {"mode", hook_mode, METH_NOARGS, "mode(): 0 off, 1 capture, 2 divert, in this thread."},
    {"installed", hook_installed, METH_NOARGS, "installed(): is the eval-frame function in place?"},
    {"ambient", native_ambient, METH_NOARGS, "ambient(): dict of the state that AMBIENT guards compare."},
    {"probe", mc_tensor_probe, METH_NOARGS,
     "probe(): None if tensors are read natively, else the reason why not."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "minicompile._native",
    .m_doc = "The eval-frame hook, compiled functions and guards.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void) {
    PyTypeObject *types[] = {&Null_Type, &GuardProgram_Type, &Entry_Type, &CompiledFunction_Type};
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        if (PyType_Ready(types[i]) < 0) {
            return NULL;
        }
    }
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) {
        return NULL;
    }
    extra_index = request_extra_index(extra_free);
    mc_null = PyObject_New(PyObject, &Null_Type);
    if (extra_index < 0 || mc_null == NULL || PyModule_AddObjectRef(module, "NULL", mc_null) < 0 ||
        PyModule_AddType(module, &GuardProgram_Type) < 0 || PyModule_AddType(module, &Entry_Type) < 0 ||
        PyModule_AddType(module, &CompiledFunction_Type) < 0 ||
        PyModule_AddIntConstant(module, "OFFER", POLICY_OFFER) < 0 ||
        PyModule_AddIntConstant(module, "NATIVE", POLICY_NATIVE) < 0 ||
        PyModule_AddIntConstant(module, "SUSPEND", POLICY_SUSPEND) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
