ALTER TABLE "payments" ADD COLUMN "troubled_since" timestamp (3) with time zone;--> statement-breakpoint
ALTER TABLE "payments" ADD COLUMN "captured_amount" bigint;--> statement-breakpoint
ALTER TABLE "payments" ADD COLUMN "captured_currency" text;--> statement-breakpoint
ALTER TABLE "payments" ADD COLUMN "settled" jsonb;--> statement-breakpoint
ALTER TABLE "payments" ADD COLUMN "looked_at" timestamp (3) with time zone;