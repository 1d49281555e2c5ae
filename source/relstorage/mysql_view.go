package relstorage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// A snapshot of InnoDB belongs to one connection, so several connections see one
// state only if nothing was committed between the first snapshot and the last.
// Whether that is so is found out afterwards:
//
//   - A commit of RelStorage writes a tid above all others, and commits come one
//     after the other in the order of their tids. Snapshots with the same highest
//     tid (of object_state, and of transaction, where a transaction may have no
//     rows) hold the same commits.
//   - A pack writes no tid. It deletes rows: revisions that are superseded, objects
//     that nothing leads to, transactions that have become empty. Nothing is
//     inserted without a tid above all others, so the number of rows only falls
//     between two commits, and snapshots with the same highest tid and the same
//     number of rows in object_state and in transaction differ in no row of either.
//     The rows of current_object and blob_chunk go in the same transaction as
//     theirs in object_state, or were superseded together with them.
//   - What may differ is what is changed in place without a tid: whether a
//     transaction is marked as packed, and a state that releases before 4.0 emptied
//     when an object was deleted. Both are the truth of one of two moments that are
//     milliseconds apart, and each row is read by one connection only.
//
// Counting reads an index, once and in all connections at a time, which is little
// beside reading all keys.
//
// Where commits come too fast for that, a further connection locks object_state
// for a moment. LOCK TABLES ... READ waits for the transactions that have written
// to it and then keeps further ones waiting, but no reader, and concerns this
// table alone; so it is tried before FLUSH TABLES WITH READ LOCK, which stops the
// whole server. Every commit with objects and every batch of a pack writes to
// object_state, the other tables in the same transaction; what else changes
// transaction is found by counting, as above. To lock all tables would be worse:
// who holds one and waits for another can be in a circle with a commit, and the
// server would break off the commit. A lock is waited for two seconds at most, and
// for as long a commit of a site may wait. The server releases it when the
// connection ends, also if this process is killed, and after five seconds if it
// hears nothing.

// snapshotTries is how many times snapshots are taken without a lock.
const snapshotTries = 5

// lockedTries is how many times they are taken with one.
const lockedTries = 3

// view implements engine.
func (e *mysqlEngine) view(ctx context.Context, n int) ([]conn, string, error) {
	first, err := e.lead(ctx)
	if err != nil {
		return nil, "", err
	}
	group := mysqlGroup{first}
	sees, err := first.tables(ctx)
	if err == nil && (n == 1 || !sees.objects) {
		if err = group.begin(ctx); err == nil {
			return group.conns(), "", nil
		}
	}
	if err != nil {
		group.close(0)
		return nil, "", err
	}
	note := ""
	for len(group) < n {
		config, _ := e.server()
		c, err := e.connect(ctx, config)
		if ctx.Err() != nil {
			group.close(0)
			return nil, "", ctx.Err()
		}
		if err != nil {
			note = fmt.Sprintf("%s is read with %d connections instead of %d, because it gave no more: %s", e.name(), len(group), n, mysqlReason(err))
			break
		}
		group = append(group, c)
	}
	group, alone, err := e.agree(ctx, group, sees)
	if err != nil {
		group.close(0)
		return nil, "", err
	}
	if alone != "" {
		note = alone
	}
	return group.conns(), note, nil
}

// lead connects to the first server that answers.
func (e *mysqlEngine) lead(ctx context.Context) (*mysqlConn, error) {
	var problems []error
	for _, config := range e.servers {
		c, err := e.connect(ctx, config)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			problems = append(problems, err)
			continue
		}
		version := ""
		err = c.query(ctx, "SELECT VERSION()", func(r row) error {
			version = string(r.bytes(0))
			return nil
		})
		if err != nil {
			_ = c.close()
			return nil, err
		}
		e.mu.Lock()
		e.used, e.maria = config, isMariaDB(version)
		e.mu.Unlock()
		return c, nil
	}
	if len(problems) == 1 {
		return nil, problems[0]
	}
	for i, err := range problems {
		problems[i] = e.plain(err)
	}
	return nil, errors.Join(problems...)
}

// mysqlTables is what a view is compared by.
type mysqlTables struct {
	objects, transactions bool
}

// tables looks which tables there are, and refuses those that this role may not
// read or that know no snapshots. The server shows a role only what it may read:
// a history-preserving database would look history-free to one that lacks
// transaction and current_object, but for the column prev_tid.
func (c *mysqlConn) tables(ctx context.Context) (*mysqlTables, error) {
	engines := map[string]string{}
	err := c.query(ctx, `SELECT table_name, COALESCE(engine, '') FROM information_schema.tables
		WHERE table_schema = DATABASE() AND table_name IN ('transaction', 'object_state', 'current_object', 'blob_chunk')`, func(r row) error {
		engines[string(r.bytes(0))] = string(r.bytes(1))
		return nil
	})
	if err != nil {
		return nil, err
	}
	history := false
	err = c.query(ctx, "SELECT 1 FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'object_state' AND column_name = 'prev_tid'", func(row) error {
		history = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	t := &mysqlTables{}
	wanted := []string{"object_state", "blob_chunk"}
	if history {
		wanted = append(wanted, "transaction", "current_object")
	}
	for _, name := range wanted {
		switch err := c.query(ctx, "SELECT * FROM `"+name+"` LIMIT 0", func(row) error { return nil }); {
		case err == nil:
		case numberOf(err) == noSuchTable:
			continue
		default:
			return nil, err
		}
		switch engine := engines[name]; engine {
		case "InnoDB", "":
		default:
			return nil, &plainError{text: fmt.Sprintf("%s: the table %s is kept by %s, which has no snapshots, so no state of it can be read while the site works; convert it on a copy of the database (ALTER TABLE `%s` ENGINE = InnoDB) and read that", c.engine.name(), name, engine, name)}
		}
		t.objects = t.objects || name == "object_state"
		t.transactions = t.transactions || name == "transaction"
	}
	return t, nil
}

// agree makes all connections of a group see one state. Where that cannot be had
// only the first is left, and note tells why.
func (e *mysqlEngine) agree(ctx context.Context, group mysqlGroup, sees *mysqlTables) (_ mysqlGroup, note string, err error) {
	if len(group) == 1 {
		return group, "", group.begin(ctx)
	}
	for try := range e.tries {
		if err := group.begin(ctx); err != nil {
			return group, "", err
		}
		same, err := group.same(ctx, sees)
		if same || err != nil {
			return group, "", err
		}
		select {
		case <-time.After(time.Duration(try+1) * 50 * time.Millisecond):
		case <-ctx.Done():
			return group, "", ctx.Err()
		}
	}
	var refused error
	for range lockedTries {
		if refused, err = e.beginLocked(ctx, group); err != nil {
			return group, "", err
		}
		if refused != nil {
			break
		}
		same, err := group.same(ctx, sees)
		if same || err != nil {
			return group, "", err
		}
		refused = errors.New("its connections see different states even so; is there a proxy that spreads them over several servers?")
	}
	group.close(1)
	group = group[:1]
	note = fmt.Sprintf("%s is read with one connection, because commits come too fast for several to see the same state, and its table object_state could not be locked for a moment: %s; grant LOCK TABLES on the database to the role, or stop the site", e.name(), mysqlReason(refused))
	return group, note, group.begin(ctx)
}

// lockWait is how long, in seconds, a lock is waited for, and a silent holder of
// it kept.
const lockWait, lockHold = 2, 5

// beginLocked takes the snapshots of a group while nobody can commit. refused is
// why the tables could not be locked.
func (e *mysqlEngine) beginLocked(ctx context.Context, group mysqlGroup) (refused, err error) {
	config, _ := e.server()
	locker, err := e.connect(ctx, config)
	if err != nil {
		return err, ctx.Err()
	}
	defer locker.close()
	for _, q := range []string{
		fmt.Sprintf("SET SESSION lock_wait_timeout = %d", lockWait),
		fmt.Sprintf("SET SESSION wait_timeout = %d", lockHold),
	} {
		if err := locker.exec(ctx, q); err != nil {
			return nil, err
		}
	}
	if refused := locker.lock(ctx); refused != nil {
		return refused, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, lockHold*time.Second/2)
	defer cancel()
	return nil, group.begin(ctx)
}

// lock locks the table that all commits write to, or else the whole server.
func (c *mysqlConn) lock(ctx context.Context) error {
	err := c.exec(ctx, "LOCK TABLES object_state READ")
	switch numberOf(err) {
	case deniedDatabase, deniedTable, deniedPrivilege:
		if numberOf(c.exec(ctx, "FLUSH TABLES WITH READ LOCK")) == 0 {
			return nil
		}
	}
	return err
}

// mysqlGroup is the connections that are to see one state.
type mysqlGroup []*mysqlConn

func (g mysqlGroup) conns() []conn {
	conns := make([]conn, len(g))
	for i, c := range g {
		conns[i] = c
	}
	return conns
}

// close closes the connections from one on.
func (g mysqlGroup) close(from int) {
	for _, c := range g[from:] {
		_ = c.close()
	}
}

func (g mysqlGroup) each(ctx context.Context, fn func(ctx context.Context, i int, c *mysqlConn) error) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for i, c := range g {
		tasks.Go(func() error { return fn(ctx, i, c) })
	}
	return tasks.Wait()
}

// begin takes a new snapshot in each connection.
func (g mysqlGroup) begin(ctx context.Context) error {
	return g.each(ctx, func(ctx context.Context, _ int, c *mysqlConn) error {
		return c.exec(ctx, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
	})
}

// same tells whether all connections see the same highest tids, and then as many
// rows.
func (g mysqlGroup) same(ctx context.Context, sees *mysqlTables) (bool, error) {
	for _, what := range []string{"MAX(tid)", "COUNT(*)"} {
		seen := make([][2]int64, len(g))
		err := g.each(ctx, func(ctx context.Context, i int, c *mysqlConn) (err error) {
			seen[i], err = c.look(ctx, what, sees)
			return err
		})
		if err != nil {
			return false, err
		}
		for _, s := range seen {
			if s != seen[0] {
				return false, nil
			}
		}
	}
	return true, nil
}

// look gives a number about object_state and about transaction.
func (c *mysqlConn) look(ctx context.Context, what string, sees *mysqlTables) (seen [2]int64, err error) {
	q := "SELECT " + what + ", 0 FROM object_state"
	if sees.transactions {
		q = "SELECT (SELECT " + what + " FROM object_state), (SELECT " + what + " FROM `transaction`)"
	}
	err = c.query(ctx, q, func(r row) (err error) {
		for i := range seen {
			if seen[i], err = r.int(i); err != nil {
				return err
			}
		}
		return nil
	})
	return seen, err
}
