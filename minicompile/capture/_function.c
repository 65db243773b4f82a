/* CompiledFunction: a callable that tries its entries' guards and runs the first program that fits.
 *
 * Takes a Python function, whose parameters it binds natively as CPython would (what does not bind is left
 * to CPython, so that errors are CPython's own), and a list of entries (guards, program), the one that hit
 * last in front. On a hit it returns program(*fetched), and the function itself never runs; on a miss of
 * all, on_miss(self, args, kwargs, locals) decides.
 */
#include "_native.h"

#include <stddef.h>
#include <structmember.h>

/* --- entries ---------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *guards, *program, *data;
    Py_ssize_t hits, misses, last_miss;
} Entry;

static PyObject *entry_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"guards", "program", "data", NULL};
    PyObject *guards, *program, *data = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O|O", names, &GuardProgram_Type, &guards, &program,
                                     &data)) {
        return NULL;
    }
    Entry *self = (Entry *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->guards = Py_NewRef(guards);
        self->program = Py_NewRef(program);
        self->data = Py_NewRef(data);
        self->last_miss = -1;
    }
    return (PyObject *)self;
}

static int entry_traverse(Entry *self, visitproc visit, void *arg) {
    Py_VISIT(self->guards);
    Py_VISIT(self->program);
    Py_VISIT(self->data);
    return 0;
}

static int entry_clear(Entry *self) {
    Py_CLEAR(self->program);
    Py_CLEAR(self->data);
    Py_CLEAR(self->guards);
    return 0;
}

static void entry_dealloc(Entry *self) {
    PyObject_GC_UnTrack(self);
    entry_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyMemberDef entry_members[] = {
    {"guards", T_OBJECT_EX, offsetof(Entry, guards), READONLY, "the GuardProgram"},
    {"program", T_OBJECT_EX, offsetof(Entry, program), READONLY, "called with what the guards fetched"},
    {"data", T_OBJECT, offsetof(Entry, data), 0, "whatever the owner wants to keep here"},
    {"hits", T_PYSSIZET, offsetof(Entry, hits), 0, "calls that ran the program"},
    {"misses", T_PYSSIZET, offsetof(Entry, misses), 0, "calls whose guards failed"},
    {"last_miss", T_PYSSIZET, offsetof(Entry, last_miss), 0,
     "index of the guard instruction that failed last, or -1"},
    {NULL},
};

PyTypeObject Entry_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "minicompile._native.Entry",
    .tp_basicsize = sizeof(Entry),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Entry(guards, program, data=None)\n\nOne compiled version: program(*fetched) runs when the "
              "guards hold.",
    .tp_new = entry_new,
    .tp_dealloc = (destructor)entry_dealloc,
    .tp_traverse = (traverseproc)entry_traverse,
    .tp_clear = (inquiry)entry_clear,
    .tp_members = entry_members,
};

/* --- the function ----------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *function, *on_miss, *entries, *dict, *weakrefs;
    char enabled;
} CompiledFunction;

#define MAX_FETCH_ON_STACK 64

/* What one call is about. */
typedef struct {
    CompiledFunction *self;
    PyObject *function;
    PyObject **locals;
    Py_ssize_t nlocals;
} Call;

static void move_to_front(PyObject *list, PyObject *entry) {
    for (Py_ssize_t i = 1; i < PyList_GET_SIZE(list); i++) {
        if (PyList_GET_ITEM(list, i) == entry) {
            for (Py_ssize_t j = i; j > 0; j--) {
                PyList_SET_ITEM(list, j, PyList_GET_ITEM(list, j - 1));
            }
            PyList_SET_ITEM(list, 0, entry);
            return;
        }
    }
}

/* Runs the program if the guards hold, and says so in *hit. */
static PyObject *try_entry(Call *call, Entry *entry, bool *hit) {
    PyObject *stack[MAX_FETCH_ON_STACK + 1], *result = NULL;
    GuardProgram *guards = (GuardProgram *)entry->guards;
    Py_ssize_t room = mc_guard_fetch_count(guards), failed = -1;
    PyObject **fetched =
        room <= MAX_FETCH_ON_STACK ? stack : PyMem_Malloc((size_t)(room + 1) * sizeof(PyObject *));
    if (fetched == NULL) {
        return PyErr_NoMemory();
    }
    Py_ssize_t count =
        mc_guard_run(guards, call->function, call->locals, call->nlocals, fetched + 1, &failed);
    *hit = count >= 0;
    if (*hit) {
        entry->hits++;
        if (PyList_GET_SIZE(call->self->entries) > 1) {
            move_to_front(call->self->entries, (PyObject *)entry);
        }
        result = PyObject_Vectorcall(entry->program, fetched + 1,
                                     (size_t)count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        while (count > 0) {
            Py_DECREF(fetched[count--]);
        }
    }
    else {
        entry->misses++;
        entry->last_miss = failed;
    }
    if (fetched != stack) {
        PyMem_Free(fetched);
    }
    return result;
}

/* program(*fetched) of the first entry whose guards hold; *hit tells whether there was one. Guards may run
 * code, ours in another thread too, that changes the list: so what follows the first entry is tried from a
 * copy. */
static PyObject *run_entries(Call *call, bool *hit) {
    PyObject *entries = call->self->entries, *result = NULL;
    Py_ssize_t count = PyList_GET_SIZE(entries);
    if (count == 0) {
        return NULL;
    }
    PyObject *first = Py_NewRef(PyList_GET_ITEM(entries, 0));
    PyObject *copy = count > 1 ? PyList_GetSlice(entries, 1, count) : NULL;
    if (Py_IS_TYPE(first, &Entry_Type)) {
        result = try_entry(call, (Entry *)first, hit);
    }
    for (Py_ssize_t i = 0; copy != NULL && !*hit && result == NULL && i < PyList_GET_SIZE(copy); i++) {
        if (Py_IS_TYPE(PyList_GET_ITEM(copy, i), &Entry_Type)) {
            result = try_entry(call, (Entry *)PyList_GET_ITEM(copy, i), hit);
        }
    }
    Py_XDECREF(copy);
    Py_DECREF(first);
    return result;
}

/* --- binding arguments ------------------------------------------------------------------------ */

typedef struct {
    PyCodeObject *code;
    Py_ssize_t positional, named,
        total;                /* parameters: by position; those and keyword-only; with *args and **kwargs */
    PyObject **locals;        /* strong references, in the order of co_varnames */
    PyObject *extra_keywords; /* the dict for **kwargs, also in locals */
} Binding;

static bool bind_positional(Binding *to, PyObject *const *args, Py_ssize_t nargs) {
    Py_ssize_t direct = nargs < to->positional ? nargs : to->positional;
    for (Py_ssize_t i = 0; i < direct; i++) {
        to->locals[i] = Py_NewRef(args[i]);
    }
    if (to->code->co_flags & CO_VARARGS) {
        PyObject *rest = PyTuple_New(nargs - direct);
        if (rest == NULL) {
            return false;
        }
        for (Py_ssize_t i = direct; i < nargs; i++) {
            PyTuple_SET_ITEM(rest, i - direct, Py_NewRef(args[i]));
        }
        to->locals[to->named] = rest;
        return true;
    }
    return nargs <= to->positional;
}

static Py_ssize_t find_parameter(Binding *to, PyObject *name) {
    PyObject **names = ((PyTupleObject *)to->code->co_localsplusnames)->ob_item;
    for (Py_ssize_t i = to->code->co_posonlyargcount; i < to->named; i++) {
        if (names[i] == name) {
            return i;
        }
    }
    for (Py_ssize_t i = to->code->co_posonlyargcount; i < to->named; i++) {
        if (PyUnicode_Compare(names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static bool bind_keywords(Binding *to, PyObject *const *values, PyObject *kwnames) {
    if (to->code->co_flags & CO_VARKEYWORDS) {
        to->extra_keywords = to->locals[to->total - 1] = PyDict_New();
        if (to->extra_keywords == NULL) {
            return false;
        }
    }
    for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (!PyUnicode_Check(name)) {
            return false;
        }
        Py_ssize_t found = find_parameter(to, name);
        if (found >= 0) {
            if (to->locals[found] != NULL) {
                return false;
            }
            to->locals[found] = Py_NewRef(values[i]);
        }
        else if (to->extra_keywords == NULL || PyDict_SetItem(to->extra_keywords, name, values[i]) < 0) {
            return false;
        }
    }
    return true;
}

static bool bind_defaults(Binding *to, PyFunctionObject *function) {
    PyObject *defaults = function->func_defaults, *kwdefaults = function->func_kwdefaults;
    Py_ssize_t first = to->positional - (defaults ? PyTuple_GET_SIZE(defaults) : 0);
    for (Py_ssize_t i = 0; i < to->named; i++) {
        if (to->locals[i] != NULL) {
            continue;
        }
        PyObject *value = NULL;
        if (i < to->positional) {
            value = defaults && i >= first ? PyTuple_GET_ITEM(defaults, i - first) : NULL;
        }
        else if (kwdefaults != NULL) {
            value = PyDict_GetItemWithError(kwdefaults, PyTuple_GET_ITEM(to->code->co_localsplusnames, i));
        }
        if (value == NULL) {
            return false;
        }
        to->locals[i] = Py_NewRef(value);
    }
    return true;
}

static Py_ssize_t parameter_count(PyCodeObject *code) {
    return code->co_argcount + code->co_kwonlyargcount + ((code->co_flags & CO_VARARGS) != 0) +
           ((code->co_flags & CO_VARKEYWORDS) != 0);
}

/* False: the arguments don't fit (or memory ran out): CPython will say so better. `locals` must be all
 * NULL. */
static bool bind(PyObject *function, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                 PyObject **locals) {
    PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(function);
    Binding to = {
        code, code->co_argcount, code->co_argcount + code->co_kwonlyargcount, parameter_count(code), locals,
        NULL};
    bool bound = bind_positional(&to, args, nargs) && bind_keywords(&to, args + nargs, kwnames) &&
                 bind_defaults(&to, (PyFunctionObject *)function);
    if (!bound && PyErr_Occurred()) {
        PyErr_Clear();
    }
    return bound;
}

/* --- calls ------------------------------------------------------------------------------------ */

static PyObject *locals_list(PyObject **locals, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyList_SET_ITEM(list, i, Py_NewRef(locals[i] ? locals[i] : mc_null));
    }
    return list;
}

/* on_miss(self, args, kwargs, locals) */
static PyObject *call_on_miss(CompiledFunction *self, PyObject *args, PyObject *kwargs, PyObject **locals,
                              Py_ssize_t count) {
    PyObject *list = locals_list(locals, count), *result = NULL;
    if (list != NULL && args != NULL && kwargs != NULL) {
        PyObject *on_miss = Py_NewRef(self->on_miss);
        void *foreign = mc_foreign_hook_off();
        result = PyObject_CallFunctionObjArgs(on_miss, (PyObject *)self, args, kwargs, list, NULL);
        mc_foreign_hook_on(foreign);
        Py_DECREF(on_miss);
    }
    Py_XDECREF(list);
    return result;
}

static PyObject *miss(CompiledFunction *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                      PyObject **locals, Py_ssize_t count) {
    PyObject *tuple = PyTuple_New(nargs), *kwargs = PyDict_New(), *result = NULL;
    for (Py_ssize_t i = 0; tuple != NULL && i < nargs; i++) {
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
    }
    bool fine = tuple != NULL && kwargs != NULL;
    for (Py_ssize_t i = 0; fine && kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
        fine = PyDict_SetItem(kwargs, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) == 0;
    }
    if (fine) {
        result = call_on_miss(self, tuple, kwargs, locals, count);
    }
    Py_XDECREF(tuple);
    Py_XDECREF(kwargs);
    return result;
}

#define MAX_LOCALS_ON_STACK 32

static PyObject *compiled_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf,
                                     PyObject *kwnames) {
    CompiledFunction *self = (CompiledFunction *)callable;
    PyObject *function = self->function;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (!self->enabled ||
        mc_thread.mode == MODE_CAPTURE) { /* capturing: the frame itself is offered to the handler */
        return PyObject_Vectorcall(function, args, nargsf, kwnames);
    }
    Py_ssize_t count = parameter_count((PyCodeObject *)PyFunction_GET_CODE(function));
    PyObject *stack[MAX_LOCALS_ON_STACK];
    PyObject **locals =
        count <= MAX_LOCALS_ON_STACK ? stack : PyMem_Malloc((size_t)count * sizeof(PyObject *));
    if (locals == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        locals[i] = NULL;
    }
    Py_INCREF(self);
    PyObject *result;
    if (!bind(function, args, nargs, kwnames, locals)) {
        result = PyObject_Vectorcall(function, args, nargsf, kwnames); /* raises CPython's own TypeError */
    }
    else {
        bool hit = false;
        Call call = {self, function, locals, count};
        result = run_entries(&call, &hit);
        if (!hit && !PyErr_Occurred()) {
            result = miss(self, args, nargs, kwnames, locals, count);
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_XDECREF(locals[i]);
    }
    if (locals != stack) {
        PyMem_Free(locals);
    }
    Py_DECREF(self);
    return result;
}

/* The arguments of a call that would bind to these locals, for on_miss. */
static PyObject *args_from_locals(PyCodeObject *code, PyObject **locals, PyObject **kwargs) {
    Py_ssize_t named = code->co_argcount + code->co_kwonlyargcount;
    PyObject *rest = code->co_flags & CO_VARARGS ? locals[named] : NULL;
    PyObject *more = code->co_flags & CO_VARKEYWORDS ? locals[parameter_count(code) - 1] : NULL;
    *kwargs = more ? PyDict_Copy(more) : PyDict_New();
    PyObject *args = PyTuple_New(code->co_argcount + (rest ? PyTuple_GET_SIZE(rest) : 0));
    if (args == NULL || *kwargs == NULL) {
        return args;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++) {
        PyObject *value = i < code->co_argcount ? locals[i] : PyTuple_GET_ITEM(rest, i - code->co_argcount);
        PyTuple_SET_ITEM(args, i, Py_NewRef(value));
    }
    for (Py_ssize_t i = code->co_argcount; i < named; i++) {
        if (PyDict_SetItem(*kwargs, PyTuple_GET_ITEM(code->co_localsplusnames, i), locals[i]) < 0) {
            Py_CLEAR(args);
            break;
        }
    }
    return args;
}

PyObject *mc_compiled_run(PyObject *compiled, PyObject *function, PyObject **locals) {
    CompiledFunction *self = (CompiledFunction *)compiled;
    PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(function);
    Py_ssize_t count = parameter_count(code);
    bool hit = false;
    Call call = {self, function, locals, count};
    PyObject *result = run_entries(&call, &hit);
    if (!hit && !PyErr_Occurred()) {
        PyObject *kwargs = NULL, *args = args_from_locals(code, locals, &kwargs);
        result = call_on_miss(self, args, kwargs, locals, count);
        Py_XDECREF(args);
        Py_XDECREF(kwargs);
    }
    return result;
}

/* --- the type --------------------------------------------------------------------------------- */

static PyObject *compiled_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"function", "on_miss", NULL};
    PyObject *function, *on_miss;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O", names, &PyFunction_Type, &function, &on_miss)) {
        return NULL;
    }
    CompiledFunction *self = (CompiledFunction *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->vectorcall = compiled_vectorcall;
        self->function = Py_NewRef(function);
        self->on_miss = Py_NewRef(on_miss);
        self->entries = PyList_New(0);
        self->enabled = true;
        if (self->entries == NULL) {
            Py_CLEAR(self);
        }
    }
    return (PyObject *)self;
}

static int compiled_traverse(CompiledFunction *self, visitproc visit, void *arg) {
    Py_VISIT(self->function);
    Py_VISIT(self->on_miss);
    Py_VISIT(self->entries);
    Py_VISIT(self->dict);
    return 0;
}

static int compiled_clear(CompiledFunction *self) {
    Py_CLEAR(self->dict);
    Py_CLEAR(self->entries);
    Py_CLEAR(self->on_miss);
    Py_CLEAR(self->function);
    return 0;
}

static void compiled_dealloc(CompiledFunction *self) {
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    compiled_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *compiled_get(PyObject *self, PyObject *object, PyObject *type) {
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static PyObject *compiled_repr(CompiledFunction *self) {
    return PyUnicode_FromFormat("<CompiledFunction %R with %zd entries>", self->function,
                                PyList_GET_SIZE(self->entries));
}

static PyMemberDef compiled_members[] = {
    {"function", T_OBJECT_EX, offsetof(CompiledFunction, function), READONLY, "the Python function"},
    {"on_miss", T_OBJECT_EX, offsetof(CompiledFunction, on_miss), 0,
     "on_miss(self, args, kwargs, locals) -> result"},
    {"entries", T_OBJECT_EX, offsetof(CompiledFunction, entries), READONLY,
     "list of Entry, tried in order, last hit in front"},
    {"enabled", T_BOOL, offsetof(CompiledFunction, enabled), 0, "False: calls run the function itself"},
    {"__dictoffset__", T_PYSSIZET, offsetof(CompiledFunction, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(CompiledFunction, weakrefs), READONLY, NULL},
    {NULL},
};

static PyGetSetDef compiled_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL},
};

PyTypeObject CompiledFunction_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "minicompile._native.CompiledFunction",
    .tp_basicsize = sizeof(CompiledFunction),
    .tp_vectorcall_offset = offsetof(CompiledFunction, vectorcall),
    .tp_dictoffset = offsetof(CompiledFunction, dict),
    .tp_weaklistoffset = offsetof(CompiledFunction, weakrefs),
    .tp_flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_doc = "CompiledFunction(function, on_miss)\n\nCallable like `function`; see the attributes.",
    .tp_new = compiled_new,
    .tp_dealloc = (destructor)compiled_dealloc,
    .tp_call = PyVectorcall_Call,
    .tp_descr_get = compiled_get,
    .tp_repr = (reprfunc)compiled_repr,
    .tp_traverse = (traverseproc)compiled_traverse,
    .tp_clear = (inquiry)compiled_clear,
    .tp_members = compiled_members,
    .tp_getset = compiled_getset,
};
