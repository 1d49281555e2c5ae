package watermark

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
)

const (
	appPrefix  = "zodb-convert "
	appControl = "control"
)

// AppName is the application_name of a connection: what PostgreSQL shows to the
// administrator, and how a resume finds what an earlier generation left behind.
// role is "control" or a worker's name.
func AppName(runID string, generation int64, role string) string {
	return fmt.Sprintf("%s%s g%d %s", appPrefix, shortID(runID), generation, role)
}

// ControlRole is the role of the connection that tells that a run is alive.
func ControlRole() string { return appControl }

func shortID(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

// Backend is a connection of a run, seen from the server.
type Backend struct {
	PID        uint32
	Generation int64
	Role       string
	Client     string // address, empty for a unix socket
	Started    time.Time
}

// Backends returns the connections of a run of all generations, without the
// own one.
func Backends(ctx context.Context, q Querier, runID string) ([]Backend, error) {
	prefix := appPrefix + shortID(runID) + " g"
	rows, err := q.Query(ctx, `SELECT pid, application_name, coalesce(host(client_addr), ''), coalesce(backend_start, now())
		FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
		AND starts_with(application_name, $1::text) ORDER BY pid`, prefix)
	if err != nil {
		return nil, fmt.Errorf("look for the run's connections: %w", err)
	}
	var found []Backend
	var b Backend
	var app string
	var pid int32
	_, err = pgx.ForEachRow(rows, []any{&pid, &app, &b.Client, &b.Started}, func() error {
		b.PID = uint32(pid)
		generation, role, _ := strings.Cut(app[len(prefix):], " ")
		var err error
		if b.Generation, err = strconv.ParseInt(generation, 10, 64); err != nil {
			return nil // not one of ours
		}
		b.Role = role
		found = append(found, b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for the run's connections: %w", err)
	}
	return found, nil
}

// Alive tells whether the process of a run's latest generation still works on
// it. It waits a little for a connection to vanish whose client has just died.
func Alive(ctx context.Context, q Querier, r *Record, host string) (bool, error) {
	if r.Host == host && !processExists(r.PID) {
		return false, nil
	}
	for deadline := time.Now().Add(3 * time.Second); ; {
		control, err := hasControl(ctx, q, r.ID, r.Generation)
		if err != nil || !control {
			return false, err
		}
		if time.Now().After(deadline) {
			return true, nil
		}
		if err := sleep(ctx, 25*time.Millisecond); err != nil {
			return false, err
		}
	}
}

// Working is Alive without the patience: it tells what can be seen now.
func Working(ctx context.Context, q Querier, r *dest.Run, host string) (bool, error) {
	if r.Host == host && !processExists(r.PID) {
		return false, nil
	}
	return hasControl(ctx, q, r.ID, r.Generation)
}

func hasControl(ctx context.Context, q Querier, runID string, generation int64) (bool, error) {
	found, err := Backends(ctx, q, runID)
	if err != nil {
		return false, err
	}
	for _, b := range found {
		if b.Generation == generation && b.Role == appControl {
			return true, nil
		}
	}
	return false, nil
}

// processExists tells whether a process of this host has the pid.
func processExists(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, os.ErrPermission)
}

// EndEarlier terminates the connections of generations below the given one and
// waits until they are gone. Where the server does not allow to terminate them
// (they belong to another role) it waits until they end by themselves.
func EndEarlier(ctx context.Context, q Querier, runID string, generation int64) error {
	for deadline := time.Now().Add(time.Minute); ; {
		found, err := Backends(ctx, q, runID)
		if err != nil {
			return err
		}
		var left []Backend
		for _, b := range found {
			if b.Generation < generation {
				left = append(left, b)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("server process %d of the interrupted run does not end; end it with pg_terminate_backend(%d) and try again",
				left[0].PID, left[0].PID)
		}
		for _, b := range left {
			if err := Terminate(ctx, q, runID, b.PID); err != nil {
				return err
			}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// Terminate asks the server to end a process if it is one of the run's, and if
// that is allowed.
func Terminate(ctx context.Context, q Querier, runID string, pid uint32) error {
	_, err := q.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid = $1::int4 AND pid <> pg_backend_pid() AND starts_with(application_name, $2::text)`,
		int32(pid), appPrefix+shortID(runID)+" g")
	if err != nil && !denied(err) {
		return fmt.Errorf("end server process %d: %w", pid, err)
	}
	return nil
}

func denied(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42501"
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
