package pgjsonb

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/dest/s3blob"
)

// tierOf is where the row of a blob says that its bytes are.
const tierOf = `CASE WHEN s3_key <> '' THEN 's3' ELSE 'postgresql' END`

// readBlobs counts the blobs by where they are. Their bytes are stored apart from
// the rows, so that reading all rows reads little; where that takes too long after
// all, some pages tell of the others.
func (s *surveyor) readBlobs(ctx context.Context) {
	if s.conn.IsClosed() || !s.layout.has(blobState) {
		return
	}
	err := s.ask(ctx, func() error { return s.countBlobs(ctx, "", 1) })
	switch {
	case err == nil:
	case code(err) == "57014" && ctx.Err() == nil:
		s.question(ctx, "its blobs", s.estimateBlobs)
	default:
		s.unanswered(ctx, "its blobs", err)
	}
}

// countBlobs counts those of a sample, of which each stands for so many.
func (s *surveyor) countBlobs(ctx context.Context, sample string, each float64) error {
	rows, err := s.conn.Query(ctx, fmt.Sprintf(`SELECT %s, round(count(*) * $1::float8)::int8, round(coalesce(sum(blob_size), 0)::float8 * $1::float8)::numeric::int8, coalesce(max(blob_size), 0)
		FROM %s %s GROUP BY 1 ORDER BY 1`, tierOf, s.layout.name(blobState), sample), each)
	if err != nil {
		return err
	}
	tiers, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t dest.BlobTier, err error) {
		return t, row.Scan(&t.Tier, &t.Blobs, &t.Bytes, &t.Largest)
	})
	if err == nil && len(tiers) > 0 {
		s.out.BlobTiers = tiers
	}
	return err
}

func (s *surveyor) estimateBlobs(ctx context.Context) error {
	var pages int64
	err := s.conn.QueryRow(ctx, `SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int8`, s.layout.name(blobState)).Scan(&pages)
	if err != nil {
		return err
	}
	percent := min(100, 100*sampledPages/float64(max(pages, 1)))
	if err := s.countBlobs(ctx, fmt.Sprintf("TABLESAMPLE SYSTEM (%g)", percent), 100/percent); err != nil {
		return err
	}
	s.note("How many blobs there are and how large is estimated from %.2g%% of their rows; there may be larger ones.", percent)
	return nil
}

// sampledPages is how many pages of rows of blobs tell of the others.
const sampledPages = 2000

// someKey is that of a blob that should be in S3, or one like it. By an object that
// is there the store tells more.
func (s *surveyor) someKey(ctx context.Context) string {
	key := s3blob.Key(0, 0)
	if slices.ContainsFunc(s.out.BlobTiers, func(t dest.BlobTier) bool { return t.Tier == "s3" }) {
		s.question(ctx, "a blob in S3", func(ctx context.Context) error {
			return s.conn.QueryRow(ctx, `SELECT s3_key FROM `+s.layout.name(blobState)+` WHERE s3_key <> '' LIMIT 1`).Scan(&key)
		})
	}
	return key
}

// lookAtBucket asks the store what can be asked without writing.
func (s *surveyor) lookAtBucket(ctx context.Context) {
	s.problem(s.unopened)
	store := s.d.config.S3
	if store == nil || ctx.Err() != nil {
		return
	}
	access, err := store.Access(ctx, s.someKey(ctx))
	if err != nil {
		if ctx.Err() == nil {
			s.problem(s.d.unusable(err))
			s.recommend("With --deferred-blobs a conversion asks nothing of %s.", store.Name())
		}
		return
	}
	add := func(name string, answer s3blob.Answer, needed bool, hint string) {
		if answer == s3blob.Unknown {
			s.note("Whether the credentials may %s could not be told without writing.", name)
			return
		}
		if answer == s3blob.Yes {
			hint = ""
		}
		s.out.Rights = append(s.out.Rights, dest.Right{Name: name, Granted: answer == s3blob.Yes, Needed: needed, Hint: hint})
	}
	objects := store.FullKey("*")
	add("read objects of "+store.Name(), access.Read, true, "allow s3:GetObject on the objects "+objects)
	add("list the objects of "+store.Name(), access.List, false, "allow s3:ListBucket on the bucket "+store.Bucket()+"; verify then finds objects that belong to nothing")
	s.note("Whether the credentials may write and remove objects of %s was not tried, because that writes; a conversion tries it before it begins. They need s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on the objects %s.", store.Name(), objects)
	if s.conn == nil || s.conn.IsClosed() || s.state == nil || s.state.Condition != dest.Filled {
		return
	}
	s.fits(ctx, "its blobs in S3", func(ctx context.Context) error { return s.d.checkBucket(ctx, s.conn, s.layout) })
}
