package pipeline_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/pipeline"
)

func TestSetOfOidsThatDoesNotFitIsRefusedBeforeTheLoad(t *testing.T) {
	server := postgres.Server(t)
	dsn := server.NewDatabase(t)
	before := server.Snapshot(t, dsn)
	_, err := convert(t, context.Background(), testdata("plone.fs"), dsn, false, pipeline.Options{Memory: 64 << 20})
	var refused *dest.RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if !strings.Contains(err.Error(), "--memory 65MB") {
		t.Errorf("the refusal does not say what is needed: %v", err)
	}
	if after := server.Snapshot(t, dsn); after["schema"] != before["schema"] {
		t.Error("the destination was changed")
	}
}
