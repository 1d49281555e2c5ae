package jsonb

import (
	"strings"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// call writes an object that a call made.
func (e *Encoder) call(b []byte, n *pickle.Node, depth int) []byte {
	state, hasState := n.State()
	if n.Reordered {
		e.row.Forms[ItemsReordered]++
	}
	switch n.Made {
	case pickle.ByNewObjEx:
		return e.newObjEx(b, n, depth)
	case pickle.ByInst:
		return e.oldInstance(b, n, depth)
	}
	callable, args := &e.nodes[n.A], &e.nodes[n.B]
	if callable.Kind == pickle.Global {
		if n.Made == pickle.ByReduce {
			if b, ok := e.folded(b, n, depth); ok {
				return b
			}
			if !hasState {
				if b, ok := e.known(b, n, depth); ok {
					return b
				}
			}
		}
		if hasState && args.Kind == pickle.Tuple && !e.isGlobal(callable, "", "") {
			if args.B == 0 {
				return e.instance(b, n, state, depth)
			}
			if n.Made == pickle.ByNewObj {
				return e.madeInstance(b, n, state, depth)
			}
		}
	}
	return e.reduce(b, n, depth)
}

// hasItems tells whether items were set on or appended to an object.
func (e *Encoder) hasItems(n *pickle.Node) bool {
	return len(e.machine.Items(n)) > 0 || len(e.machine.Appends(n)) > 0
}

// isGlobal tells whether a node is a global of this name.
func (e *Encoder) isGlobal(n *pickle.Node, module, name string) bool {
	return n.Kind == pickle.Global && string(e.machine.Data(&e.nodes[n.B])) == name &&
		string(e.machine.Data(&e.nodes[n.A])) == module
}

// folded writes the calls by which sets are pickled as sets.
func (e *Encoder) folded(b []byte, n *pickle.Node, depth int) ([]byte, bool) {
	callable, args := &e.nodes[n.A], &e.nodes[n.B]
	if args.Kind != pickle.Tuple || args.B != 1 {
		return b, false
	}
	list := &e.nodes[e.machine.Kids(args)[0]]
	if list.Kind != pickle.List {
		return b, false
	}
	open := ""
	switch {
	case e.isGlobal(callable, "builtins", "set"):
		open = `{"@set":`
	case e.isGlobal(callable, "builtins", "frozenset"):
		open = `{"@fset":`
	}
	if open == "" || e.hasItems(n) {
		return b, false
	}
	state, hasState := n.State()
	if !hasState {
		return e.set(b, n, open, e.machine.Kids(list), depth), true
	}
	return e.built(b, func(b []byte) []byte {
		return e.set(b, n, open, e.machine.Kids(list), depth+2)
	}, state, depth), true
}

// instance writes an object made without arguments, with its state.
func (e *Encoder) instance(b []byte, n *pickle.Node, state pickle.Ref, depth int) []byte {
	if b, ok := e.uuid(b, n, state, depth); ok {
		return b
	}
	e.enter(n, depth+1)
	was := e.indirect
	byReduce := n.Made == pickle.ByReduce
	if byReduce || e.hasItems(n) {
		e.indirect = true
		e.row.NewCodec = true
	}
	callable := &e.nodes[n.A]
	b = append(b, `{"@cls":[`...)
	b = e.globalText(b, &e.nodes[callable.A])
	b = append(b, ',')
	b = e.globalText(b, &e.nodes[callable.B])
	b = append(b, `],"@s":`...)
	b = e.instanceState(b, callable, state, depth+1)
	if byReduce {
		b = append(b, `,"@newobj":false`...)
	}
	b = e.items(b, n, `,"@items":`, `,"@appends":`, depth+1)
	e.indirect = was
	e.leave()
	return append(b, '}')
}

func (e *Encoder) instanceState(b []byte, class *pickle.Node, r pickle.Ref, depth int) []byte {
	kind, isBTree := btreeKind(e.machine.Data(&e.nodes[class.A]), e.machine.Data(&e.nodes[class.B]))
	state := &e.nodes[r]
	var args *pickle.Node
	if state.Kind == pickle.Dict {
		args = e.argsMember(state)
	}
	switch {
	case args == nil && isBTree:
		return e.btree(b, r, kind, depth)
	case args == nil:
		return e.value(b, r, depth)
	case args.Kind == pickle.Tuple || args.Kind == pickle.Dict:
		// The old codec wrote an object of two members for keyword arguments. A
		// dict is as good as a tuple for the reader if it looks like one.
		return e.dictCall(b, state, depth)
	}
	was := e.indirect
	e.indirect = true
	b = e.value(b, r, depth)
	e.indirect = was
	return b
}

// argsMember returns the value of @args if a state has exactly the members @args
// and @state, by which the reader knows constructor arguments.
func (e *Encoder) argsMember(state *pickle.Node) *pickle.Node {
	kids := e.machine.Kids(state)
	var args *pickle.Node
	values := false
	for i := 0; i+1 < len(kids); i += 2 {
		switch key := &e.nodes[kids[i]]; {
		case e.isTextOf(key, "@args"):
			args = &e.nodes[kids[i+1]]
		case e.isTextOf(key, "@state"):
			values = true
		default:
			return nil
		}
	}
	if !values {
		return nil
	}
	return args
}

// dictCall writes a dict as a call of dict.
func (e *Encoder) dictCall(b []byte, n *pickle.Node, depth int) []byte {
	e.row.Forms[DictCall]++
	e.enter(n, depth+7)
	was := e.indirect
	e.indirect = true
	b = append(b, `{"@reduce":{"callable":{"@cls":["builtins","dict"]},"args":{"@t":[[`...)
	kids := e.machine.Kids(n)
	for i := 0; i+1 < len(kids); i += 2 {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"@t":[`...)
		b = e.value(b, kids[i], depth+7)
		b = append(b, ',')
		b = e.value(b, kids[i+1], depth+7)
		b = append(b, `]}`...)
	}
	e.indirect = was
	e.leave()
	return append(b, `]]}}}`...)
}

// madeInstance writes an object made by __new__ with arguments, and its state.
func (e *Encoder) madeInstance(b []byte, n *pickle.Node, state pickle.Ref, depth int) []byte {
	e.enter(n, depth+2)
	was := e.indirect
	e.indirect = true
	e.row.NewCodec = true
	callable := &e.nodes[n.A]
	b = append(b, `{"@cls":[`...)
	b = e.globalText(b, &e.nodes[callable.A])
	b = append(b, ',')
	b = e.globalText(b, &e.nodes[callable.B])
	b = append(b, `],"@s":{"@args":`...)
	b = e.value(b, pickle.Ref(n.B), depth+2)
	b = append(b, `,"@state":`...)
	b = e.value(b, state, depth+2)
	b = append(b, '}')
	b = e.items(b, n, `,"@items":`, `,"@appends":`, depth+1)
	e.indirect = was
	e.leave()
	return append(b, '}')
}

// items writes what was set on or appended to an object.
func (e *Encoder) items(b []byte, n *pickle.Node, items, appends string, depth int) []byte {
	if pairs := e.machine.Items(n); len(pairs) > 0 {
		e.row.NewCodec = true
		e.enter(n, depth+2)
		b = append(b, items...)
		b = e.pairs(b, pairs, depth+1)
		e.leave()
	}
	if list := e.machine.Appends(n); len(list) > 0 {
		e.row.NewCodec = true
		b = append(b, appends...)
		b = e.list(b, list, depth)
	}
	return b
}

// reduce writes any call.
func (e *Encoder) reduce(b []byte, n *pickle.Node, depth int) []byte {
	newobj := n.Made == pickle.ByNewObj
	return e.reduceOf(b, n, newobj, func(b []byte) []byte {
		return e.value(b, pickle.Ref(n.A), depth+2)
	}, func(b []byte) []byte {
		return e.args(b, n, depth+2)
	}, depth)
}

// reduceOf writes a call with the given callable and arguments and what was done
// to its result. Arguments come before the state and the items, so that the
// references are found in the order of the Python codec.
func (e *Encoder) reduceOf(b []byte, n *pickle.Node, newobj bool, callable, args func([]byte) []byte, depth int) []byte {
	e.enter(n, depth+2)
	was := e.indirect
	e.indirect = true
	b = append(b, `{"@reduce":{"callable":`...)
	e.callable++
	b = callable(b)
	e.callable--
	b = append(b, `,"args":`...)
	b = args(b)
	if newobj {
		e.row.NewCodec = true
		b = append(b, `,"newobj":true`...)
	}
	if state, ok := n.State(); ok {
		e.row.NewCodec = true
		b = append(b, `,"state":`...)
		b = e.value(b, state, depth+2)
	}
	b = e.items(b, n, `,"items":`, `,"appends":`, depth+2)
	e.indirect = was
	e.leave()
	return append(b, `}}`...)
}

// args writes the arguments of a call. The payload of a date is bytes, whatever
// Python 2 made of it.
func (e *Encoder) args(b []byte, n *pickle.Node, depth int) []byte {
	args, callable := &e.nodes[n.B], &e.nodes[n.A]
	if args.Kind != pickle.Tuple || args.B == 0 || callable.Kind != pickle.Global ||
		string(e.machine.Data(&e.nodes[callable.A])) != "datetime" {
		return e.value(b, pickle.Ref(n.B), depth)
	}
	kids := e.machine.Kids(args)
	payload := &e.nodes[kids[0]]
	if payload.Kind != pickle.Py2Str {
		return e.value(b, pickle.Ref(n.B), depth)
	}
	e.enter(args, depth+2)
	b = append(b, `{"@t":[`...)
	b = e.bytes(b, payload, depth+2)
	for _, kid := range kids[1:] {
		b = append(b, ',')
		b = e.value(b, kid, depth+2)
	}
	e.leave()
	return append(b, `]}`...)
}

// newObjEx writes an object made by __new__ with keyword arguments as the call
// that Python's own __reduce_ex__ describes.
func (e *Encoder) newObjEx(b []byte, n *pickle.Node, depth int) []byte {
	return e.reduceOf(b, n, false, func(b []byte) []byte {
		return append(b, `{"@cls":["copyreg","__newobj_ex__"]}`...)
	}, func(b []byte) []byte {
		return e.value(b, pickle.Ref(n.B), depth+2)
	}, depth)
}

// oldInstance writes an instance of an old-style class. Python 3 makes it
// without a call if there are no arguments.
func (e *Encoder) oldInstance(b []byte, n *pickle.Node, depth int) []byte {
	e.row.Forms[OldInstance]++
	callable, args := &e.nodes[n.A], &e.nodes[n.B]
	if args.B != 0 {
		return e.reduce(b, n, depth)
	}
	if state, ok := n.State(); ok && callable.Kind == pickle.Global && !e.isGlobal(callable, "", "") {
		return e.instance(b, n, state, depth)
	}
	return e.reduceOf(b, n, false, func(b []byte) []byte {
		return append(b, `{"@cls":["copyreg","__newobj__"]}`...)
	}, func(b []byte) []byte {
		b = append(b, `{"@t":[`...)
		b = e.value(b, pickle.Ref(n.A), depth+4)
		return append(b, `]}`...)
	}, depth)
}

// mutable tells whether it matters that two references are to one object.
func (e *Encoder) mutable(n *pickle.Node) bool {
	switch n.Kind {
	case pickle.List, pickle.Dict, pickle.Set, pickle.ByteArray, pickle.Built:
		return true
	case pickle.Call:
	default:
		return false
	}
	callable := &e.nodes[n.A]
	if callable.Kind == pickle.Call {
		// The result of a method is what getattr found it on.
		return e.mutable(callable)
	}
	if callable.Kind != pickle.Global {
		return true
	}
	class := string(e.machine.Data(&e.nodes[callable.A])) + "." + string(e.machine.Data(&e.nodes[callable.B]))
	for _, prefix := range immutableModules {
		if strings.HasPrefix(class, prefix) {
			return false
		}
	}
	if strings.HasPrefix(class, "_codecs.") {
		return false
	}
	class = strings.Replace(class, "__builtin__.", "builtins.", 1)
	for _, name := range immutableBuiltins {
		if class == "builtins."+name {
			return false
		}
	}
	return true
}
