ALTER TABLE "gates" ADD COLUMN "breaker_until" timestamp (3) with time zone;--> statement-breakpoint
ALTER TABLE "items" ADD COLUMN "tax_percent" integer;--> statement-breakpoint
ALTER TABLE "sales" ADD COLUMN "details" jsonb DEFAULT '{"taxPercent":0}'::jsonb NOT NULL;