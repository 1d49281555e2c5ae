package pgjsonb

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/zodb-convert/zodb-convert/dest"
	"github.com/zodb-convert/zodb-convert/source"
)

// ofViews tells whether the load may have come from several views of its source.
func (s *session) ofViews(src source.Source) bool {
	_, ok := src.(source.Table)
	return ok && s.record.Generation > 1
}

// nameTransactions adds the transactions that rows belong to and that no view
// has given: the one before was not read so far, and the next did not have them any
// more. Without them the foreign key could not be made. They have neither user
// nor description, and go, or get theirs, when the source is compared.
func (s *session) nameTransactions(ctx context.Context, tx pgx.Tx) error {
	rows := ""
	for _, table := range s.bare.Tables {
		if table != transactionLog {
			rows += ` UNION ALL SELECT tid FROM ` + s.layout.name(table)
		}
	}
	log := s.layout.name(transactionLog)
	tag, err := tx.Exec(ctx, `INSERT INTO `+log+` (tid, username, description, extension)
		SELECT DISTINCT tid, '', '', ''::bytea FROM (`+rows[len(" UNION ALL "):]+`) x WHERE NOT EXISTS (SELECT FROM `+log+` t WHERE t.tid = x.tid)`)
	if err != nil {
		return fmt.Errorf("add the transactions that rows belong to: %w", err)
	}
	n := tag.RowsAffected()
	if n == 0 {
		return nil
	}
	correction, err := s.tables.CorrectionSQL(&dest.Result{Transactions: n})
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, correction); err != nil {
		return fmt.Errorf("add the transactions that rows belong to: %w", err)
	}
	s.tell(fmt.Sprintf("the source has changed between two starts of the load: %s got neither user nor description; --incremental mends that", count(n, "transaction")))
	return nil
}
